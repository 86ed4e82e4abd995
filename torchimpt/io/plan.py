"""Plans as files: `plan.json`, which reads back bit for bit, spot lists as CSV, and, read only, DICOM RT Ion Plans (`torchimpt.io.dicom`)
and matRad's `.mat` files (`torchimpt.io.matrad`).

`plan.json` is one object with `format`, `title`, `machine` (its name), `machine_tables` (their fingerprint), `rbe`, `fractions`, `dtype`,
`beams`, `layers` and `spots`, one spot a line. Units are in the names: MeV, mm (isocentre plane, gantry frame, as DICOM's Scan Spot
Position Map), weights in 10^6 protons, MU. `weight` and `mu` are the whole course's, `mu_per_fraction` is a fraction's; it and `fractions`
are left out where no fractions were given. Neither these nor `machine_tables` are in files of version 0.1. Beams and layers count from 0.
A beam's `patient_position` is how the patient lies (DICOM's names); files of earlier versions, HFS all, lack it.
A beam with a range shifter has `range_shifter_mm` and `range_shifter_distance_mm`, and its layers that go through it `range_shifter: true`.
A CSV spot list has the columns `beam,energy_mev,x_mm,y_mm,weight` in any order, and `range_shifter_mm`, zero for none, where some spots go
through one; other columns are left alone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torchimpt.checks import InputError, finite
from torchimpt.columns import read_columns
from torchimpt.files import input_file, reader, whole_or_nothing
from torchimpt.geometry import Beam, RangeShifter
from torchimpt.io.dicom import is_dicom, read_ion_plan
from torchimpt.io.matrad import is_mat, read_matrad_plan
from torchimpt.machine import Machine
from torchimpt.spots import Spots

FORMAT = "torchimpt plan 1"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_SAME_ANGLE = 1e-6
_SAME_POINT = 1e-3

logger = logging.getLogger(__name__)


def write_plan(
    path: str | os.PathLike, spots: Spots, machine: Machine, *, title: str = "", rbe: float | str = 1.1, fractions: int | None = None
) -> None:
    """Write a plan, as `.json` or as a `.csv` spot list, whole or not at all.

    Parameters
    ----------
    path
        Ends in `.json` or `.csv`. The CSV holds the spots only: no beams' angles, no MU.
    spots
        The plan, float32 or float64. Each number is written with the fewest digits that read back to the same bits.
    machine
        For its name, its tables' fingerprint and its monitor units.
    title
        The case's title.
    rbe
        The constant factor that the doses were planned with.
    fractions
        Of the course, whose weights are given; None where they are not known.
    """
    if fractions is not None and not (fractions == int(fractions) and fractions > 0):
        raise InputError(f"fractions must be a whole number, 1 or more, got {fractions}")
    path = Path(path)
    if path.suffix.lower() not in (".json", ".csv"):
        raise InputError(f"cannot write the plan {path}: the name must end in .json or .csv")
    dtype = str(spots.weight.dtype).removeprefix("torch.")
    if dtype not in _DTYPES or spots.position.dtype != spots.weight.dtype:
        raise TypeError(f"a plan is written in float32 or float64, got position {spots.position.dtype} and weight {spots.weight.dtype}")
    for name in ("position", "weight"):
        finite(f"the plan's {name}", getattr(spots, name).detach())
    if (spots.weight < 0).any():
        raise InputError(f"the plan has {int((spots.weight < 0).sum())} negative weights; optimize with lower = 0, or clamp them")
    text = _json(spots, machine, title, rbe, fractions, dtype) if path.suffix.lower() == ".json" else _csv(spots)
    with whole_or_nothing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


@reader("plan")
def read_plan(
    path: str | os.PathLike,
    beams: Sequence[Beam] = (),
    *,
    dtype: torch.dtype | None = None,
    machine: Machine | None = None,
    rbe: float | str | None = None,
    strict: bool = False,
    ignore_apertures: bool = False,
) -> Spots:
    """Read a plan.

    Parameters
    ----------
    path
        `plan.json`, a `.csv` spot list, a DICOM RT Ion Plan, whose MU need the `machine`, or a `.mat` file of matRad's, with the patient
        that the plan is for.
    beams
        The case's beams. A spot list needs them, each with its isocenter, and its column `beam` counts them from 0; a list without a beam
        0 that names beam `len(beams)` is taken to count from 1, with a logged warning. `plan.json` has its own beams: those given here must
        agree with them where they say something, and may be left out. For RT Ion Plans and matRad's they take the place of the file's own,
        in its order.
    dtype
        Of position and weight; None is the one that was written, float32 for the others.
    machine, rbe
        What the plan's dose is to be computed with. Where `plan.json` was made with another machine (its name, or its tables) or RBE, that
        is told in a logged warning. None: not looked at. The others do not say what they were made for.
    strict
        An `InputError` in the place of the warning.
    ignore_apertures
        As of `IonPlan.spots`.
    """
    path = Path(path)
    if is_dicom(path):
        if machine is None:
            raise InputError(f"{path}: an RT Ion Plan needs a machine, whose calibration makes protons of its MU")
        return read_ion_plan(path).spots(machine, beams, dtype=dtype, ignore_apertures=ignore_apertures)
    if is_mat(path):
        return read_matrad_plan(path).spots(machine, beams, dtype=dtype, ignore_apertures=ignore_apertures)
    if path.suffix.lower() not in (".json", ".csv"):
        raise InputError(f"{path}: a plan must be plan.json, a .csv spot list, a DICOM RT Ion Plan or a .mat file of matRad's")
    input_file(path, "plan")
    if path.suffix.lower() == ".csv":
        return _read_csv(path, beams, dtype)
    plan = _load(path)
    spots = _spots(path, plan, beams, dtype)
    differs = _differences(plan, machine, rbe)
    if differs:
        text = f"{path} was made with {' and '.join(differs)}"
        if strict:
            raise InputError(f"{text}; `torchimpt dose CASE --plan {path}` computes it anew with what the case says")
        logger.warning("%s: its dose is not the planned one", text)
    return spots


def fractions_of(path: str | os.PathLike) -> int | None:
    """Of the course, where a plan file's weights are those of one: of RT Ion Plans and matRad's files. None for the others."""
    if is_dicom(path):
        return read_ion_plan(path).fractions
    return read_matrad_plan(path).fractions if is_mat(path) else None


def _shortest(values: torch.Tensor) -> list[float]:
    """Python floats with few digits that convert back to the very same values of the tensor's dtype."""
    array = values.detach().cpu().numpy()
    short = [float(str(v)) for v in array]
    # Decimal to double to single rounds twice; where that would not come back, the single's exact double is written.
    return [s if array.dtype.type(s) == v else float(v) for s, v in zip(short, array, strict=True)]


def _columns(spots: Spots) -> dict[str, list]:
    return {
        "beam": spots.beam.tolist(),
        "layer": spots.layer.tolist(),
        "energy_mev": spots.energy.tolist(),
        "x_mm": _shortest(spots.position[:, 0]),
        "y_mm": _shortest(spots.position[:, 1]),
        "weight": _shortest(spots.weight),
    }


def _thickness(spots: Spots) -> list[float]:
    """Of the range shifter that each spot goes through, mm of water; 0 for none."""
    own = [0.0 if beam.shifter is None else beam.shifter.thickness for beam in spots.beams]
    return [own[beam] if shifted else 0.0 for beam, shifted in zip(spots.beam.tolist(), spots.shifted.tolist(), strict=True)]


def _beam_row(beam: Beam) -> dict[str, Any]:
    """A beam in plan.json."""
    row: dict[str, Any] = {"gantry_deg": beam.gantry, "couch_deg": beam.couch, "isocenter_mm": list(beam.isocenter or ())}
    if beam.position is not None:
        row["patient_position"] = beam.position
    if beam.shifter is not None:
        row |= {"range_shifter_mm": beam.shifter.thickness, "range_shifter_distance_mm": beam.shifter.distance}
    return row


def _beam_of(row: dict[str, Any]) -> Beam:
    """And back."""
    thickness = row.get("range_shifter_mm")
    shifter = None if thickness is None else RangeShifter(thickness, row["range_shifter_distance_mm"])
    return Beam(row["gantry_deg"], row["couch_deg"], tuple(row["isocenter_mm"]), shifter, row.get("patient_position"))


def _json(spots: Spots, machine: Machine, title: str, rbe: float | str, fractions: int | None, dtype: str) -> str:
    """The text of plan.json."""
    columns = _columns(spots)
    per_mu = machine.protons_per_mu(spots.energy.cpu())
    mu = spots.weight.detach().cpu().double() / per_mu
    columns["mu"] = mu.tolist()
    beams = [_beam_row(beam) for beam in spots.beams]
    of_layers = zip(spots.layer_beam.tolist(), spots.layer_energy.tolist(), spots.layer_shifted.tolist(), strict=True)
    layers = [{"beam": b, "energy_mev": e, **({"range_shifter": True} if shifted else {})} for b, e, shifted in of_layers]
    head: dict[str, Any] = {"format": FORMAT, "title": title, "machine": machine.name, "machine_tables": machine.fingerprint, "rbe": rbe}
    if fractions is not None:
        columns["mu_per_fraction"] = (mu / fractions).tolist()
        head["fractions"] = int(fractions)
    head["dtype"] = dtype
    parts = [f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in head.items()]
    rows = {
        "beams": beams,
        "layers": layers,
        "spots": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }
    for key, items in rows.items():
        lines = ",\n".join("  " + json.dumps(item, allow_nan=False) for item in items)
        parts.append(f'"{key}": [\n{lines}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _csv(spots: Spots) -> str:
    """The text of a spot list."""
    columns = _columns(spots)
    del columns["layer"]
    if bool(spots.layer_shifted.any()):
        columns["range_shifter_mm"] = _thickness(spots)
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in zip(*columns.values(), strict=True))]
    return "\n".join(lines) + "\n"


def _load(path: Path) -> dict[str, Any]:
    """The file's tree."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON, it may be cut off: {error}") from error
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        found = plan.get("format") if isinstance(plan, dict) else type(plan).__name__
        raise InputError(f"{path} is no plan of this program: its 'format' must be '{FORMAT}', got {found!r}")
    return plan


def _spots(path: Path, plan: dict[str, Any], beams: Sequence[Beam], dtype: torch.dtype | None) -> Spots:
    """The spots of plan.json."""
    try:
        own = tuple(_beam_of(row) for row in plan["beams"])
        stored = _DTYPES[plan["dtype"]]
        layer_beam = _column(plan["layers"], "beam", torch.int64)
        layer_energy = _column(plan["layers"], "energy_mev", torch.float64)
        shifted = torch.tensor([_flag(row, "range_shifter") for row in plan["layers"]])
        beam, layer = (_column(plan["spots"], key, torch.int64) for key in ("beam", "layer"))
        energy, x, y, weight = (_column(plan["spots"], key, torch.float64) for key in ("energy_mev", "x_mm", "y_mm", "weight"))
    except KeyError as error:
        raise InputError(f"{path}: the plan lacks {error}, or it holds a value that is not known") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the plan has a value of the wrong kind: {error}") from error
    _check_beams(path, own, beams)
    kind = dtype or stored
    spots = Spots(torch.stack((x, y), dim=1).to(kind), weight.to(kind), layer, layer_beam, layer_energy, own, shifted)
    for name, said, meant in (("energy_mev", energy, spots.energy), ("beam", beam, spots.beam)):
        if bool((said != meant).any()):
            i = int((said != meant).nonzero()[0])
            raise InputError(f"{path}: spot {i} has {name} {said[i].item():g}, but its layer {int(layer[i])} has {meant[i].item():g}")
    return spots


def _flag(row: dict[str, Any], key: str) -> bool:
    """True or false; false where it is not there."""
    value = row.get(key, False)
    if not isinstance(value, bool):
        raise TypeError(f"{key} must be true or false, got {str(value)[:40]!r}")
    return value


def _column(rows: Any, key: str, dtype: torch.dtype) -> torch.Tensor:
    """One number of each row, `(n_rows,)`; a whole one where the dtype asks for it."""
    values = [row[key] for row in rows]
    kinds = (int,) if dtype == torch.int64 else (int, float)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise TypeError(f"{key} must be a {'whole ' if dtype == torch.int64 else ''}number, got {str(value)[:40]!r}")
    return torch.tensor(values, dtype=dtype)


def _differences(plan: dict[str, Any], machine: Machine | None, rbe: float | str | None) -> list[str]:
    """In what the plan was made with other things than the machine and the RBE given."""
    found = []
    if machine is not None:
        named = plan.get("machine") == machine.name
        # the tables decide, as a file may be renamed; a plan of an earlier version has only the name
        if plan["machine_tables"] != machine.fingerprint if "machine_tables" in plan else not named:
            found.append(f"other tables of machine '{machine.name}'" if named else f"machine '{plan.get('machine')}', not '{machine.name}'")
    if rbe is not None and plan.get("rbe") != rbe:
        found.append(f"RBE {plan.get('rbe')}, not {rbe}")
    return found


def _check_beams(path: Path, own: Sequence[Beam], beams: Sequence[Beam]) -> None:
    """An error where the case's beams are not the plan's; an isocenter that the case leaves open agrees with any."""
    if not beams:
        return

    def angle(a: float, b: float) -> float:
        return abs((a - b + 180.0) % 360.0 - 180.0)

    def same(a: Beam, b: Beam) -> bool:
        turned = max(angle(a.gantry, b.gantry), angle(a.couch, b.couch)) > _SAME_ANGLE
        moved = (
            a.isocenter is not None
            and b.isocenter is not None
            and max(abs(p - q) for p, q in zip(a.isocenter, b.isocenter, strict=True)) > _SAME_POINT
        )
        lies = a.position is not None and b.position is not None and a.position != b.position
        return not (lies or turned or moved or _other_shifter(a.shifter, b.shifter))

    if len(own) != len(beams) or not all(same(a, b) for a, b in zip(own, beams, strict=True)):
        raise InputError(
            f"{path} was planned with other beams than the case's: {_describe(own)} against {_describe(beams)}; "
            "give the case the plan's beams"
        )


def _other_shifter(own: RangeShifter | None, said: RangeShifter | None) -> bool:
    """Whether a plan's beam has another range shifter than the case says: one of a thickness, or the machine's where it is needed."""
    if said is None or (own is None and said.rule != "all"):
        return False
    if own is None or own.distance is None:
        return True
    moved = said.distance is not None and abs(own.distance - said.distance) > _SAME_POINT
    return moved or abs(own.thickness - said.thickness) > _SAME_POINT


def _describe(beams: Sequence[Beam]) -> str:
    def one(beam: Beam) -> str:
        couch = (f" couch {beam.couch:g}" if beam.couch else "") + (f" {beam.lies}" if beam.lies != "HFS" else "")
        at = "" if beam.isocenter is None else " at (" + ", ".join(f"{v:.6g}" for v in beam.isocenter) + ")"
        shifter = ""
        if beam.shifter is not None:
            where = "" if beam.shifter.distance is None else f" at {beam.shifter.distance:g} mm"
            shifter = f" with {beam.shifter.thickness:g} mm of range shifter{where}"
        return f"gantry {beam.gantry:g}{couch}{at}{shifter}"

    return ", ".join(map(one, beams))


def _read_csv(path: Path, beams: Sequence[Beam], dtype: torch.dtype | None) -> Spots:
    if not beams:
        raise InputError(f"{path}: a spot list says nothing about its beams; give the case's beams")
    columns = read_columns(path, ["beam", "energy_mev", "x_mm", "y_mm", "weight"], ["range_shifter_mm"])
    number = columns["beam"]
    if (number != number.round()).any():
        raise InputError(f"{path}: beam must be a whole number, got {float(number[number != number.round()][0]):g}")
    if int(number.max()) == len(beams) and int(number.min()) >= 1:
        logger.warning("%s names beam %d of %d: its beams are taken to count from 1", path, len(beams), len(beams))
        number = number - 1
    low, high = int(number.min()), int(number.max())
    if low < 0 or high >= len(beams):
        wrong = low if low < 0 else high
        raise InputError(f"{path} names beam {wrong}, but the case has {len(beams)}, which count from 0")
    names = ("energy_mev", "x_mm", "y_mm", "weight")
    energy, x, y, weight = (columns[name] for name in names)
    shifted = _shifted_in_csv(path, beams, number.long(), columns.get("range_shifter_mm"))
    return Spots.from_columns(beams, number.long(), energy, x, y, weight, dtype or torch.float32, shifted)


def _shifted_in_csv(path: Path, beams: Sequence[Beam], number: torch.Tensor, thickness: torch.Tensor | None) -> torch.Tensor:
    """Which spots of a list go through their beams' range shifters `(n_spots,)`: as it says, or all those of beams that have one."""
    for index, beam in enumerate(beams):
        if beam.shifter is not None and beam.shifter.distance is None:
            raise InputError(f"{path}: a spot list does not say where beam {index}'s range shifter is; give range_shifter_distance_mm")
        if beam.shifter is not None and beam.shifter.rule != "all" and thickness is None:
            raise InputError(
                f"{path}: which spots of beam {index} go through the range shifter is not in the list; give it a column range_shifter_mm, "
                "or the case a number, for all of them"
            )
    own = torch.tensor([0.0 if beam.shifter is None else beam.shifter.thickness for beam in beams], dtype=torch.float64)[number]
    if thickness is None:
        return own > 0
    wrong = (thickness != 0) & ((thickness - own).abs() > _SAME_POINT)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise InputError(
            f"{path}: spot {i} goes through {float(thickness[i]):g} mm of range shifter, but beam {int(number[i])} of the case has "
            f"{f'one of {float(own[i]):g} mm' if own[i] > 0 else 'none'}; set its range_shifter_mm"
        )
    return thickness > 0
