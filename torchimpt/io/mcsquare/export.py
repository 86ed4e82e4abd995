"""A patient and a plan as MCsquare's input: a folder that it runs in.

Every medium is water of the density that has the voxel's relative stopping power: ranges are those of this package, and the dose is dose to
water. What that leaves out is how tissues scatter and break nuclei other than water does; for that, name the conversion files of a scanner
in `config.txt`: the CT numbers are the patient's own, but outside the body (vacuum) and in ROIs of a stopping power of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from torchimpt.checks import InputError
from torchimpt.constants import AIR_RSP
from torchimpt.files import whole_folder
from torchimpt.geometry import Beam, Grid, RangeShifter, to_bev
from torchimpt.io.mcsquare.beam_data import BeamData, beam_data
from torchimpt.io.mcsquare.frame import in_frame, turned
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.physics.stopping import relative_stopping_power, table_of
from torchimpt.spots import Spots

WATER = 17
"""Water's number in MCsquare's list of materials."""

PRIMARIES = 10_000_000
"""Protons to simulate, as many as MCsquare does by itself; `Num_Primaries` in `config.txt`. With two million, two beams on a small target
in water left 1.1 % of noise in high-dose voxels of 4 mm."""

STEP = 1e-3
"""Width, HU, in which a step of the HU table is written, below the HU from which on its upper value holds."""

ROOM = 100.0
"""HU between the table and those HU that stand for a stopping power that is not the table's."""

MARGIN = 1.0
"""How far upstream of the CT's box, and of a range shifter, protons start, mm."""


@dataclass(frozen=True)
class Exported:
    """What was written: the files' names, spots, protons of the course, and how well the phase space is met (`BeamData.misfit`)."""

    files: tuple[str, ...]
    spots: int
    protons: float
    nozzle: float
    misfit: float


def export_mcsquare(folder: str | Path, patient: Patient, machine: Machine, spots: Spots, fractions: int, title: str = "") -> Exported:
    """Write CT, conversion tables, beam data library, plan and configuration into a new folder, all or nothing.

    Parameters
    ----------
    folder
        Must be empty, or not be there.
    patient, machine
        On the dose grid, which MCsquare scores on, too; what the plan is for.
    spots
        Weights of the whole course; spots without weight are left out.
    fractions
        The plan's MU are a fraction's.
    title
        The plan's name.
    """
    used = spots.weight.detach() > 0
    if not bool(used.any()):
        raise InputError("no spot of the plan has a weight; there is nothing to simulate")
    spots = spots.subset(used)
    if lying := {beam.lies for beam in spots.beams} - {"HFS"}:
        raise InputError(f"the patient lies {', '.join(sorted(lying))}; MCsquare's angles are for head first supine (HFS) only")
    beams = sorted(set(spots.beam.tolist()))
    corners = _corners(patient.grid)
    height = torch.cat([to_bev(corners, spots.beams[number])[:, 2] for number in beams])
    shifters = _shifters(spots)
    # a shifter's plate is thinner than its water-equivalent thickness
    upstream = [shifter.distance + shifter.thickness for shifter in shifters.values() if shifter.distance is not None]
    nozzle = max([float(height.max()), *upstream]) + MARGIN
    names = {_name(number): shifter.thickness for number, shifter in shifters.items()}
    data = beam_data(machine, spots.layer_energy.tolist(), float(height.min()), nozzle, names)
    hu, density = hu_and_density(patient, machine)
    texts = {
        "CT.mhd": _header(patient.grid),
        "HU_Density_Conversion.txt": "".join(f"{h:.10g} {d:.10g}\n" for h, d in density),
        "HU_Material_Conversion.txt": f"{density[0][0] - 1:.10g} {WATER}\n{density[-1][0] + 1:.10g} {WATER}\n",
        "BDL.txt": data.text,
        "PlanPencil.txt": plan_text(spots, machine, patient.grid, fractions, title),
        "config.txt": _CONFIG,
        "README.txt": _readme(data),
    }
    with whole_folder(folder) as scratch:
        for name, text in texts.items():
            (scratch / name).write_text(text, encoding="ascii", errors="replace")
        (scratch / "CT.raw").write_bytes(turned(hu.numpy().astype("<f4")).tobytes())
    protons = 1e6 * float(spots.weight.detach().double().sum())
    return Exported((*texts, "CT.raw"), spots.n_spots, protons, data.nozzle, data.misfit)


def _shifters(spots: Spots) -> dict[int, RangeShifter]:
    """The range shifters in use, by the numbers of their beams."""
    numbers = sorted(set(spots.layer_beam[spots.layer_shifted].tolist()))
    return {number: shifter for number in numbers if (shifter := spots.beams[number].shifter) is not None}


def _name(beam: int) -> str:
    """Of a beam's range shifter."""
    return f"RS_{beam}"


def _in_beam(shifter: RangeShifter, beam: Beam, grid: Grid, vacuum: bool) -> list[str]:
    """A control point's lines. Where this package has no air before the body (`vacuum`), what MCsquare takes off for that, from the shifter
    to the CT's box, is taken off the shifter's thickness.
    """
    assert shifter.distance is not None
    air = vacuum * max(shifter.distance - float(to_bev(_corners(grid), beam)[:, 2].max()), 0.0)
    rows = {"RangeShifterSetting": "IN", "IsocenterToRangeShifterDistance": f"{shifter.distance:.10g}"}
    rows["RangeShifterWaterEquivalentThickness"] = f"{shifter.thickness - AIR_RSP * air:.10g}"
    return [line for key, value in rows.items() for line in (f"####{key}", value)]


def _corners(grid: Grid) -> torch.Tensor:
    """The corners of the grid's outermost voxels `(8, 3)`, LPS, mm."""
    ends = [(o - s / 2, o + s * (n - 0.5)) for o, s, n in zip(grid.origin, grid.spacing, reversed(grid.shape), strict=True)]
    return torch.cartesian_prod(*(torch.tensor(end, dtype=torch.float64) for end in ends))


def hu_and_density(patient: Patient, machine: Machine) -> tuple[torch.Tensor, list[tuple[float, float]]]:
    """CT numbers `(z, y, x)`, and the nodes `(HU, density)` between which MCsquare interpolates, so that density is stopping power.

    Beyond the table's ends its end values hold. A voxel whose stopping power is not the table's has a HU that stands for it: below the
    table where it is none (outside the body), above it otherwise.
    """
    table, rsp = table_of(patient, machine), relative_stopping_power(patient, machine)
    ends = float(table.hu[0]), float(table.hu[-1])
    hu = patient.hu.double().clamp(*ends)
    pairs = list(zip(table.hu.tolist(), table.rsp.tolist(), strict=True))
    nodes = [(h - STEP * (i + 1 < len(pairs) and pairs[i + 1][0] == h), r) for i, (h, r) in enumerate(pairs)]
    other = (rsp - table(hu)).abs() > 1e-9
    for number, value in enumerate(rsp[other].unique().tolist()):
        place = ends[0] - ROOM if value == 0 else ends[1] + ROOM * (number + 1)
        hu[other & (rsp == value)] = place
        nodes += [(place - 1.0, value), (place + 1.0, value)]
    return hu.float(), sorted(nodes)


def _header(grid: Grid) -> str:
    """The MHD header of a volume in MCsquare's order; the offset and the matrix, which MCsquare does not use, are for viewers."""
    far = [o + s * (n - 1) for o, s, n in zip(grid.origin, grid.spacing, reversed(grid.shape), strict=True)]
    n_z, n_y, n_x = grid.shape
    rows = {
        "ObjectType": "Image", "NDims": "3", "DimSize": f"{n_x} {n_y} {n_z}",
        "ElementSpacing": " ".join(f"{s:.10g}" for s in grid.spacing),
        "Offset": f"{far[0]:.10g} {far[1]:.10g} {grid.origin[2]:.10g}", "TransformMatrix": "-1 0 0 0 -1 0 0 0 1",
        "ElementType": "MET_FLOAT", "ElementByteOrderMSB": "False", "ElementDataFile": "CT.raw",
    }  # fmt: skip
    return "".join(f"{key} = {value}\n" for key, value in rows.items())


def plan_text(spots: Spots, machine: Machine, grid: Grid, fractions: int, title: str = "") -> str:
    """The plan: a field a beam that has spots, a control point an energy layer, a line `x y MU` a spot, MU of a fraction."""
    position, beam = spots.position.detach().double(), spots.beam
    mu = spots.weight.detach().double() / machine.protons_per_mu(spots.energy) / fractions
    numbers, shifters = sorted(set(beam.tolist())), _shifters(spots)
    name = "".join(c if c.isascii() and c.isprintable() else "?" for c in title)[:60].strip() or "Plan"
    lines = ["#TREATMENT-PLAN-DESCRIPTION", "#PlanName", name, "#NumberOfFractions", str(fractions), "##FractionID", "1"]
    lines += ["##NumberOfFields", str(len(numbers))]
    for field in range(len(numbers)):
        lines += ["###FieldsID", str(field + 1)]
    lines += ["#TotalMetersetWeightOfAllFields", f"{float(mu.sum()):.12g}", ""]
    for field, number in enumerate(numbers):
        own = spots.beams[number]
        assert own.isocenter is not None
        layers = sorted(set(spots.layer[beam == number].tolist()))
        isocenter = " ".join(f"{v:.10g}" for v in in_frame(own.isocenter, grid))
        lines += ["#FIELD-DESCRIPTION", "###FieldID", str(field + 1)]
        lines += ["###FinalCumulativeMeterSetWeight", f"{float(mu[beam == number].sum()):.12g}"]
        lines += ["###GantryAngle", f"{own.gantry % 360.0:.10g}", "###PatientSupportAngle", f"{own.couch % 360.0:.10g}"]
        if number in shifters:
            lines += ["###RangeShifterID", _name(number), "###RangeShifterType", "binary"]
        lines += ["###IsocenterPosition", isocenter, "###NumberOfControlPoints", str(len(layers)), "", "#SPOTS-DESCRIPTION"]
        total = 0.0
        for index, layer in enumerate(layers):
            here = (spots.layer == layer).nonzero().flatten()
            total += float(mu[here].sum())
            lines += ["####ControlPointIndex", str(index + 1), "####SpotTunnedID", "1", "####CumulativeMetersetWeight", f"{total:.12g}"]
            if bool(spots.layer_shifted[layer]):
                lines += _in_beam(shifters[number], own, grid, machine.air_from is None)
            lines += [
                "####Energy (MeV)",
                f"{float(spots.layer_energy[layer]):.10g}",
                "####NbOfScannedSpots",
                str(len(here)),
                "####X Y Weight",
            ]
            lines += [f"{x:.9g} {y:.9g} {m:.12g}" for (x, y), m in zip(position[here].tolist(), mu[here].tolist(), strict=True)]
        lines.append("")
    return "\n".join(lines)


_CONFIG = f"""# MCsquare's configuration, written by torchimpt. Run MCsquare in this folder; the dose is Outputs/Dose.mhd.
Num_Threads 0
RNG_Seed 0
Num_Primaries {PRIMARIES}
CT_File CT.mhd
HU_Density_Conversion_File HU_Density_Conversion.txt
HU_Material_Conversion_File HU_Material_Conversion.txt
BDL_Machine_Parameter_File BDL.txt
BDL_Plan_File PlanPencil.txt
Output_Directory Outputs
Dose_MHD_Output True
Dose_to_Water_conversion Disabled
# what single protons leave in a vacuum is no dose
Dose_Segmentation True
Density_Threshold_for_Segmentation 0.0001
"""


def _readme(data: BeamData) -> str:
    return f"""Input for MCsquare, written by torchimpt.

Run MCsquare in this folder, with the environment's MCsquare_Materials_Dir naming the folder Materials of its distribution. Then
    torchimpt compare RUN Outputs/Dose.mhd
shows its dose beside the run's. Num_Primaries in config.txt says how many protons are simulated: a quarter of them leaves twice the noise,
which is part of every difference. `compare` says how much of it.

What is approximate:
- Protons start {data.nozzle:.1f} mm upstream of the isocentre, just outside CT and range shifters, with a phase space fitted to the
  machine's sigma in air; the two differ by {data.misfit:.3f} mm at most.
- Range shifters are plates of Lexan of their beams' water-equivalent thickness, less air that MCsquare counts and torchimpt does not.
- Mean energies and energy spreads are those whose range and distal fall-off in water are the machine's.
- Every medium is water of the density that has its stopping power; outside the body there is vacuum. For tissues put the files of a
  scanner's calibration in the place of HU_Density_Conversion.txt and HU_Material_Conversion.txt.
- Monitor units are torchimpt's nominal ones; the protons of every spot are the plan's.
"""
