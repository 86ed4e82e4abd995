"""Does LETd lie within the band of Monte Carlo codes, with nothing fitted to them?

    python experiments/letd_check.py [--data ../shared/data] [--out FOLDER] [--figure letd.png]

Two fields of a clinic in solid water, one layer of 160 MeV and a spread-out Bragg peak of 12, computed with five codes (APTG
2022_DCPT_LET, Bassler et al., doi 10.5281/zenodo.10641085, CC BY 4.0); four of them tell LETd of all protons on the axis, in water, or, as
TOPAS does, in the medium. The plans are RT Ion Plans, the machine is that clinic's emittance table with the depth doses and widths of
MCsquare, LETd that of `torchimpt.physics.letd` at each layer's range and straggling. Band: the lowest to the highest of the codes,
widened by 5 %, wherever their mean dose is above 5 % of its maximum. LETd is of dose and LETd x dose averaged over 2 x 2 cm^2, as theirs.

The solid water of 1.032 g/cm^3 is taken as Gammex 457 (by weight H 8.1, C 67.2, N 2.4, O 19.9, Cl 0.1, Ca 2.3 %): 0.972 of water's
electrons a gram and a mean excitation energy of 68 against 75 eV make a relative stopping power of 1.032 x 0.972 x 1.012 = 1.015; PMMA
has 1.158.

The file of the second plan holds the upper 12 layers only, 113.119 to 149.419 MeV, whose plateau begins at -10 mm; the codes' doses are
flat from -45 mm on. So layers are added at the plan's own spacing, down to 83.419 MeV, with the spots of its lowest one and weights that
make our dose as flat (non-negative least squares of dose alone); deeper than -10 mm they add nothing.

Takes half a minute. What came out: all 177 depths of the mono-energetic field and all 158 of the spread-out peak lie inside the band. Dose
over that at the entrance is within 2 % of SHIELD-HIT12A's up to the distal edge, the added layers' part included.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from torchimpt.checks import PhysicsWarning
from torchimpt.dose.scenarios import scenario_operators
from torchimpt.geometry import Beam, Grid
from torchimpt.hu_table import HuTable
from torchimpt.io import read_plan
from torchimpt.machine import read_emittance_machine
from torchimpt.patient import Patient
from torchimpt.scenarios import NOMINAL
from torchimpt.spots import Spots
from torchimpt.studies.flags import flags

SOLID_WATER, PMMA = 1.015, 1.158
"""Relative stopping powers."""

FIELDS = {"plan02": ("mono-energetic", "RN_178320_mono.dcm", -22.5), "plan01": ("SOBP", "RN_178041.dcm", -102.5)}
"""By the name in the codes' files: what it is, the RT Ion Plan, and where the block of 205 mm begins, mm from the isocentre."""

FLAT, BEGINS, ADDED, SPACING = (-45.0, 5.0), -5.0, 9, 3.3
"""Where the dose of the second plan is made flat, mm, and from where on its own layers are; how many its file lacks; spacing, MeV."""

WIDENED, LEAST_DOSE = 0.05, 0.05
"""Shares by which the band is widened, and of the largest dose below which nothing is compared."""


@dataclass(frozen=True)
class Config:
    """Flags."""

    data: str = "../shared/data"
    figure: str = ""


@dataclass(frozen=True)
class Comparison:
    """LETd on the axis, keV/um, at depths in mm from the isocentre `(n,)`: ours, and each code's; the doses, relative, likewise."""

    depth: np.ndarray
    letd: np.ndarray
    codes: dict[str, np.ndarray]
    dose: np.ndarray
    doses: dict[str, np.ndarray]

    @property
    def counts(self) -> np.ndarray:
        """Where the dose is high enough, and every code has a value."""
        mean = np.mean([dose / dose.max() for dose in self.doses.values()], axis=0)
        return (mean > LEAST_DOSE) & np.all([curve > 0 for curve in self.codes.values()], axis=0)

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest code, widened."""
        curves = list(self.codes.values())
        return np.min(curves, axis=0) * (1.0 - WIDENED), np.max(curves, axis=0) * (1.0 + WIDENED)

    @property
    def inside(self) -> np.ndarray:
        """Whether we are within the band, of the depths that count."""
        low, high = self.band
        return ((self.letd >= low) & (self.letd <= high))[self.counts]


def read_codes(folder: Path, plan: str) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Depths, mm; LETd, keV/um, and dose by code."""
    letd, dose, depth = {}, {}, np.zeros(0)
    for path in sorted(folder.glob(f"*__{plan}_*")):
        code, quantity = path.name.split("__")[0], path.name.split("__")[2]
        table = np.loadtxt(path)
        if "dose" in quantity.lower():
            dose[code] = table[:, 1]
        elif "LET_p3" not in quantity or code == "topas":  # in water where a code tells both
            depth, letd[code] = 10.0 * table[:, 0], table[:, 1] / 10.0
    return depth, letd, {code: dose[code] for code in letd}


def compare(config: Config, plan: str) -> Comparison:
    """Compute one field as the codes did."""
    data = Path(config.data)
    _, file, face = FIELDS[plan]
    depth, codes, doses = read_codes(data / "let", plan)
    grid = Grid((51, len(depth), 51), (2.0, 1.0, 2.0), (-50.0, face + 0.5, -50.0))
    plate = (grid.axis("y").abs() < 2.5)[None, :, None].expand(grid.shape)
    rsp = torch.where(plate, PMMA, SOLID_WATER)
    patient = Patient((1000.0 * (rsp - 1.0)).float(), grid, hu_table=HuTable(torch.tensor([-1000.0, 1000.0]), torch.tensor([0.0, 2.0])))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*energies are spread less than", PhysicsWarning)
        machine = read_emittance_machine(
            data / "let" / "DCPT_beam_model__v2.csv", plane_mm=500.0, curves=data / "mc", sad_mm=(2000.0, 2560.0)
        )
    beam = Beam(0.0, 0.0, (0.0, 0.0, 0.0))
    spots = read_plan(data / "dicom" / "varian_sobp" / file, (beam,), machine=machine, dtype=torch.float64)
    near = (grid.axis("x").abs() <= 10.0)[None, None, :] & (grid.axis("z").abs() <= 10.0)[:, None, None]
    voxels = near.expand(grid.shape).flatten().nonzero().flatten()
    weight = spots.weight.detach()
    if plan == "plan01":
        spots, weight = completed(spots)
    layers = spots.layer.unique()
    by_layer = []
    for amplitude in ("dose", "letd_dose"):
        operator = next(scenario_operators(patient, machine, spots, voxels, (NOMINAL,), dtype=torch.float64, amplitude=amplitude))
        values = torch.stack([operator.dose(spots.position.detach(), weight * (spots.layer == layer)) for layer in layers])
        by_layer.append(values.reshape(len(layers), -1, len(depth), int((grid.axis("x").abs() <= 10.0).sum())).sum((1, 3)).numpy())
    share = np.ones(len(layers))
    if plan == "plan01":
        flat = (depth > FLAT[0]) & (depth < FLAT[1])
        given, added = by_layer[0][:-ADDED].sum(0), by_layer[0][-ADDED:]
        level = given[flat & (depth > BEGINS)].mean()
        share[-ADDED:] = nnls(added[:, flat].T, level - given[flat])[0]
    dose, weighted = (share @ values for values in by_layer)
    return Comparison(depth, weighted / np.maximum(dose, 1e-300), codes, dose, doses)


def completed(spots: Spots) -> tuple[Spots, torch.Tensor]:
    """The plan with copies of its lowest layer at the energies that its file lacks, which come last; their weights are the copies'."""
    energy = spots.layer_energy[spots.layer].double()
    lowest = energy < float(energy.min()) + 0.01
    position, weight = spots.position.detach(), spots.weight.detach()
    energies = [energy] + [energy[lowest] - SPACING * k for k in range(1, ADDED + 1)]
    places = torch.cat([position] + [position[lowest]] * ADDED)
    weights = torch.cat([weight] + [weight[lowest]] * ADDED)
    beam = torch.zeros(len(weights), dtype=torch.int64)
    whole = Spots.from_columns(spots.beams, beam, torch.cat(energies), places[:, 0], places[:, 1], weights, torch.float64)
    return whole, whole.weight.detach()


def report(name: str, found: Comparison) -> None:
    """A table of every tenth depth and of those near the end, and how many lie in the band."""
    low, high = found.band
    print(f"\n{name}: LETd, keV/um{'':6s}" + "".join(f"{code:>16s}" for code in found.codes) + f"{'band':>16s}{'ours':>10s}")
    places = found.counts.nonzero()[0]
    for i in sorted({*places[::10], *places[-12:]}):
        mark = "" if low[i] <= found.letd[i] <= high[i] else "  OUTSIDE"
        values = "".join(f"{curve[i]:16.3f}" for curve in found.codes.values())
        print(f"  {found.depth[i]:8.1f} mm{'':10s}{values}   {low[i]:6.3f}-{high[i]:6.3f}{found.letd[i]:10.3f}{mark}")
    print(f"  inside the band: {int(found.inside.sum())} of {len(found.inside)} depths")


def figure(results: dict[str, Comparison], path: str) -> None:
    """LETd of the codes, the band, and ours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(1, len(results), figsize=(5.0 * len(results), 3.6), squeeze=False, constrained_layout=True)
    for axis, (name, found) in zip(axes[0], results.items(), strict=True):
        here = found.counts
        z, (low, high) = found.depth[here], found.band
        axis.fill_between(z, low[here], high[here], color="0.85", label="codes, widened by 5 %")
        for code, curve in found.codes.items():
            axis.plot(z, curve[here], lw=0.7, label=code)
        axis.plot(z, found.letd[here], "k", lw=1.5, label="torchimpt")
        axis.set(title=name, xlabel="depth from the isocentre, mm", ylabel="LETd, keV/µm", ylim=(0, None))
    axes[0][0].legend(frameon=False, fontsize=7)
    plt.savefig(path, dpi=150)


def main(config: Config) -> None:
    results = {FIELDS[plan][0]: compare(config, plan) for plan in FIELDS}
    for name, found in results.items():
        report(name, found)
    if config.figure:
        figure(results, config.figure)


if __name__ == "__main__":
    main(flags(Config, __doc__))
