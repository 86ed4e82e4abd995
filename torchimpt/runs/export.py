"""A run for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchimpt.checks import InputError, nearest
from torchimpt.files import check_free
from torchimpt.io.dicom.write import carried_over, export_dicom, new_identity
from torchimpt.io.matrad.export import FILE, Wanted, export_matrad
from torchimpt.io.mcsquare.export import export_mcsquare
from torchimpt.planning.assess import beam_doses
from torchimpt.planning.load import set_up
from torchimpt.runs.finished import FinishedRun, read_dose_on, read_finished

DEFAULT_FORMAT = "dicom"
"""What is meant where no format is named."""


def run_export(run: str | Path, to: str | Path, format: str = DEFAULT_FORMAT) -> str:
    """Write a finished run's plan, and what belongs to it, into a new folder; returns what was written, and what to do with it.

    Parameters
    ----------
    run
        The run folder.
    to
        A folder that is empty, or not there.
    format
        A key of `FORMATS`.
    """
    if format not in FORMATS:
        raise InputError(f"export format must be one of {', '.join(FORMATS)}, got '{format}'{nearest(format, FORMATS)}")
    return FORMATS[format](read_finished(run), Path(run), Path(to))


def _mcsquare(finished: FinishedRun, run: Path, to: Path) -> str:
    case = finished.case
    done = export_mcsquare(to, finished.patient, finished.machine, finished.spots, case.delivery.fractions, case.title)
    return (
        f"Wrote {to}: {', '.join(sorted(done.files))}\n"
        f"{done.spots:,} spots, {done.protons:.4g} protons in {case.delivery.fractions} fractions, from {done.nozzle:.0f} mm upstream on, "
        f"in a phase space within {done.misfit:.2g} mm of the machine's sigma in air\n"
        f"Next: run MCsquare in {to}, then torchimpt compare {run} {to / 'Outputs' / 'Dose.mhd'}"
    )


def _dicom(finished: FinishedRun, run: Path, to: Path) -> str:
    case, patient, machine, spots = finished.case, finished.patient, finished.machine, finished.spots
    config = case.patient
    if config.source == "dicom":
        assert config.path is not None
        identity = carried_over(config.path, **config.own)
    else:
        identity = new_identity(patient.name)
    dose = read_dose_on(run / "dose.mha", patient.grid)
    check_free(to)
    spots = spots.weighted()
    doses = beam_doses(case, patient, machine, spots, set_up(case))
    done = export_dicom(
        to, patient, machine, spots, dose, doses, identity, case.delivery.fractions, rbe=case.dose.rbe, title=case.title,
        prescriptions=case.prescriptions(), own_rois=[made.name for made in case.roi],
    )  # fmt: skip
    metersets = ", ".join(f"beam {number}: {meterset:,.6g} {done.unit}" for number, meterset in done.metersets.items())
    source, slices = (config.path, "") if identity.source is not None else (to, f" and {done.slices} CT slices")
    return (
        f"Wrote {to}: {', '.join(done.files)}{slices}, not for clinical use\n"
        f"{done.spots:,} spots in {done.layers} energy layers; a fraction, of {case.delivery.fractions}, has {metersets}\n"
        f"Doses are the whole course's; CT and structure set: {source}. docs/dicom.md says what is in the files"
    )


def _matrad(finished: FinishedRun, run: Path, to: Path) -> str:
    case = finished.case
    mode = case.mode().name if len(case.scenarios()) > 1 else "nominal"
    rows = [row.model_dump(exclude_none=True) | {"mode": mode if row.mode is None else row.mode.name} for row in case.objective]
    placed = case.spots
    wanted = Wanted(
        case.delivery.fractions, None if isinstance(case.dose.rbe, str) else case.dose.rbe, rows, case.optimizer.normalize,
        case.optimizer.overlap, **({} if placed is None else {"spacing": placed.spacing_mm}),
    )  # fmt: skip
    dose = read_dose_on(run / "dose.mha", finished.patient.grid)
    done = export_matrad(to, finished.patient, finished.machine, finished.spots, dose, wanted)
    missing = f"\nWithout a counterpart in matRad, and left out: {', '.join(done.left_out)}" if done.left_out else ""
    return (
        f"Wrote {to}: {', '.join(done.files)}\n"
        f"{done.spots:,} spots on {done.rays:,} rays, weights and dose of one of {case.delivery.fractions} fractions{missing}\n"
        f"Next: load {to / FILE} in matRadGUI; matRad needs protons_{done.machine}.mat, and the .hlut file in its folder userdata/hluts"
    )


FORMATS: dict[str, Callable[[FinishedRun, Path, Path], str]] = {"dicom": _dicom, "mcsquare": _mcsquare, "matrad": _matrad}
"""From a run, its folder and the folder to write to what is told."""
