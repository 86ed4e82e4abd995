"""A run for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchimpt.checks import InputError, nearest
from torchimpt.io.mcsquare.export import export_mcsquare
from torchimpt.runs.finished import FinishedRun, read_finished

DEFAULT_FORMAT = "dicom"
"""What is meant where no format is named."""

LATER = ("dicom", "matrad")
"""Formats that are not there yet."""


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
    if format in LATER:
        raise InputError(f"export format '{format}' is not there yet; use --format {' or '.join(FORMATS)}")
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


FORMATS: dict[str, Callable[[FinishedRun, Path, Path], str]] = {"mcsquare": _mcsquare}
"""From a run, its folder and the folder to write to what is told."""
