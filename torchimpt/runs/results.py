"""What a command leaves of a finished plan besides `metrics.json`: doses, DVHs and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from torchimpt.case import Case
from torchimpt.evaluate.tables import LETD_COLUMNS, write_dvh_csv
from torchimpt.io.image import write_image
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.physics.stopping import table_of
from torchimpt.planning.assess import Assessment
from torchimpt.planning.load import Compute
from torchimpt.planning.pictures import picture_doses
from torchimpt.report.page import ReportData, write_report
from torchimpt.report.volumes import most_telling
from torchimpt.runs.about import remake, versions
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots import Spots


def write_results(
    out: Path,
    case: Case,
    patient: Patient,
    machine: Machine,
    spots: Spots,
    assessment: Assessment,
    metrics: dict,
    *,
    scenarios: Sequence[Scenario],
    compute: Compute,
    history: Sequence[dict] = (),
    home: torch.Tensor | None = None,
) -> None:
    """Doses, DVHs and the report page."""
    write_image(out / "dose.mha", assessment.dose, patient.grid)
    if case.output.scenarios_dose:
        for name, dose in assessment.scenario_doses.items():
            if name != NOMINAL.name:
                # signs and decimals stay: x-3mm and x+3mm are two files
                write_image(out / f"dose_{name.replace('/', '_').replace('%', '')}.mha", dose, patient.grid)
    for beam, dose in assessment.beam_doses.items():
        write_image(out / f"dose_beam{beam}.mha", dose, patient.grid)
    write_dvh_csv(out / "dvh.csv", assessment.roi_doses)
    if assessment.letd is not None:
        write_image(out / "letd.mha", assessment.letd, patient.grid)
        write_dvh_csv(out / "letd_dvh.csv", assessment.roi_letd, columns=LETD_COLUMNS)
    angles = ", ".join(f"{beam.gantry:g}°" for beam in spots.beams)
    used = spots.weight.detach() > 0 if bool((spots.weight > 0).any()) else torch.ones(spots.n_spots, dtype=torch.bool)
    chosen = most_telling(list(assessment.roi_doses), [goal["worst_scenario"] for goal in assessment.goals])
    pictured = [scenario for scenario in scenarios if scenario.name in chosen and not scenario.is_nominal]
    data = ReportData(
        title=case.title or patient.name or "Plan",
        patient=patient,
        dose=assessment.dose,
        roi_doses=assessment.roi_doses,
        scenario_doses=picture_doses(case, patient, machine, spots, assessment, pictured, compute),
        targets=case.spots.targets if case.spots else patient.targets,
        prescription=case.prescription(),
        goals=assessment.goals,
        roi_letd=assessment.roi_letd,
        metrics=metrics,
        history=history,
        hu_table=table_of(patient, machine),
        spots=spots.subset(used),
        home=None if home is None else home[used],
        subtitle=f"{patient.name or 'Patient'} · {machine.name} machine · gantry {angles}",
        case=case.to_toml(),
        remake=remake(),
        versions=versions(),
    )
    write_report(out / "report.html", data)
