"""What compared runs are looked at on: the first run's patient, and every run's dose on its grid."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from torchimpt.case import load_case
from torchimpt.checks import InputError
from torchimpt.planning.load import load_patient
from torchimpt.report.compare import Ground, RunRecord
from torchimpt.resampling import values_on

log = logging.getLogger(__name__)


def ground_of(folder: str | Path, records: Sequence[RunRecord]) -> Ground | None:
    """Where the doses of records can be looked at; None, with the reason in the log, where that is nowhere.

    Parameters
    ----------
    folder
        Of the first run, whose case names the patient.
    records
        From `torchimpt.runs.returned.read_records`; those without dose are left out, but not the first.
    """
    first = records[0]
    if first.dose is None or first.grid is None:
        log.warning("the page has no slices: %s has no dose.mha", folder)
        return None
    try:
        case = load_case(Path(folder))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were told when the run was made
            patient = load_patient(case)
    except InputError as error:
        log.warning("the page has no slices: %s", error)
        return None
    if patient.grid.shape != first.grid.shape:
        log.warning("the page has no slices: the patient that the case of %s names is not on the grid of its dose", folder)
        return None
    doses = {
        record.name: values_on(record.dose.float(), record.grid, patient.grid)
        for record in records
        if record.dose is not None and record.grid is not None
    }
    return Ground(patient, doses, case.prescription())
