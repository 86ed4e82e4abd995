"""What a commissioning leaves: the machine file, its residuals as a table, and plots, in one folder, all or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from torchimpt.commissioning.fit import Commissioning, Residual
from torchimpt.files import whole_folder
from torchimpt.machine.commissioned import FILE, text_of
from torchimpt.version import __version__

LABELS = {
    "depth_dose": ("Depth dose", "depth, mm", "Gy mm² per 10⁶ protons"),
    "air_x": ("Sigma in air along x", "distance from the isocentre towards the source, mm", "mm"),
    "air_y": ("Sigma in air along y", "distance from the isocentre towards the source, mm", "mm"),
    "core": ("Sigma of the core in water", "depth, mm", "mm"),
    "halo_share": ("Share of the halo", "depth, mm", ""),
    "halo_sigma": ("Sigma of the halo in water", "depth, mm", "mm"),
}
"""Title and axes of each table's plot."""


def write_commissioning(folder: str | Path, result: Commissioning) -> tuple[str, ...]:
    """Write `machine.toml`, `residuals.csv` and a plot a table into a new folder; returns the files' names."""
    tables = [name for name in LABELS if any(r.table == name for r in result.residuals)]
    text = text_of(result.machine.name, result.machine.sad, result.sections, f"Written by torchimpt {__version__}, commission")
    with whole_folder(folder) as scratch:
        (scratch / FILE).write_text(text, encoding="utf-8")
        (scratch / "residuals.csv").write_text(_rows(result.residuals), encoding="utf-8")
        for name in tables:
            _plot(name, [r for r in result.residuals if r.table == name]).savefig(scratch / f"{name}.png", dpi=120)
    return (FILE, "residuals.csv", *(f"{name}.png" for name in tables))


def summary(result: Commissioning) -> str:
    """A line an energy: range, energy and spread with standard errors, and each table's rms residual."""
    curves, errors = result.sections["curves"], result.sections["curves_error"]
    names = [name for name in LABELS if any(r.table == name for r in result.residuals)]
    lines = [f"{'MeV':>7s} {'range mm':>17s} {'mean MeV':>9s} {'spread MeV':>10s}  " + " ".join(f"{name:>10s}" for name in names)]
    for i, energy in enumerate(curves["energy_mev"]):
        rms = {r.table: _rms(r) for r in result.residuals if r.energy == energy}
        lines.append(
            f"{energy:7.2f} {curves['range_mm'][i]:9.3f} +- {errors['range_mm'][i]:4.3f} {result.mean_energy[i]:9.3f} "
            f"{result.energy_spread[i]:10.3f}  " + " ".join(f"{rms.get(name, ''):>10s}" for name in names)
        )
    return "\n".join(lines) + "\nrms residuals: depth dose in % of its maximum, widths in mm\n"


def _rms(residual: Residual) -> str:
    rms = float(np.sqrt(np.mean((residual.fitted - residual.given) ** 2)))
    return f"{100 * rms / residual.given.max():.2f} %" if residual.table == "depth_dose" else f"{rms:.4f}"


def _rows(residuals: list[Residual]) -> str:
    lines = ["table,energy_MeV,at_mm,given,fitted"]
    for r in residuals:
        lines += [f"{r.table},{r.energy:g},{x:.6g},{y:.6g},{f:.6g}" for x, y, f in zip(r.at, r.given, r.fitted, strict=True)]
    return "\n".join(lines) + "\n"


def _plot(name: str, residuals: list[Residual]) -> Figure:
    """Given (points) and fitted (lines) above, their difference below, at most six energies from the lowest to the highest."""
    title, along, unit = LABELS[name]
    chosen = [residuals[i] for i in np.unique(np.linspace(0, len(residuals) - 1, 6).round().astype(int))]
    figure = Figure(figsize=(8.0, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for i, r in enumerate(chosen):
        order = np.argsort(r.at)
        above.plot(r.at, r.given, ".", ms=3, color=f"C{i}", alpha=0.6)
        above.plot(r.at[order], r.fitted[order], "-", lw=1, color=f"C{i}", label=f"{r.energy:g} MeV")
        below.plot(r.at[order], (r.fitted - r.given)[order], ".-", ms=3, lw=0.5, color=f"C{i}")
    above.set(title=title, ylabel=unit)
    below.set(xlabel=along, ylabel="fitted - given")
    below.axhline(0.0, color="0.5", lw=0.5)
    above.legend(frameon=False)
    return figure
