"""Tables over scenarios and ROIs: the `scenarios` and `worst` parts of `metrics.json`, and `dvh.csv`."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from torchimpt.checks import InputError
from torchimpt.evaluate.dvh import RoiDose, VolumeDoses, common_axis, d, dvh, mean_dose, values, voxel_count
from torchimpt.evaluate.goals import Doses
from torchimpt.files import reader, whole_or_nothing
from torchimpt.patient import Patient
from torchimpt.points import Points

DVH_COLUMNS = ("scenario", "roi", "dose_gy", "volume_percent")
LETD_COLUMNS = ("scenario", "roi", "letd_kev_um", "volume_percent")


def roi_doses(
    patient: Patient, doses: Mapping[str, torch.Tensor], voxels: torch.Tensor | None = None
) -> dict[str, dict[str, torch.Tensor]]:
    """The doses of every ROI that has a voxel, and a dose at all of them, in every scenario.

    Parameters
    ----------
    patient
        Whose ROIs are looked up.
    doses
        By scenario, Gy: a whole grid `(z, y, x)` or `(n_voxels,)`, or the voxels named by `voxels`.
    voxels
        `(n,)`, flat indices that the entries of each dose stand for; None means the whole grid.

    Returns
    -------
    `{scenario: {roi: (n_roi,)}}`, on the CPU, in the doses' dtype.
    """
    indices = {name: roi.voxels for name, roi in patient.rois.items() if bool(roi.mask.any())}
    if voxels is not None:
        place = torch.full((patient.grid.n_voxels,), -1)
        place[voxels.cpu()] = torch.arange(voxels.numel())
        placed = {name: place[index] for name, index in indices.items()}
        indices = {name: index for name, index in placed.items() if bool((index >= 0).all())}
    table = {}
    for scenario, dose in doses.items():
        flat = dose.detach().flatten().cpu()
        expected = patient.grid.n_voxels if voxels is None else voxels.numel()
        if flat.numel() != expected:
            raise InputError(f"the dose of scenario '{scenario}' has {flat.numel()} values, {expected} voxels are expected")
        table[scenario] = {name: flat[index] for name, index in indices.items()}
    return table


def point_doses(points: Points, doses: Mapping[str, torch.Tensor], rois: Iterable[str] | None = None) -> dict[str, dict[str, RoiDose]]:
    """Likewise from doses `(n_points,)` at points: those of the named ROIs, or of all that have a point, with their volumes."""
    names = [name for name in (points.rois if rois is None else rois) if bool(points.roi(name).mask.any())]
    own = {name: (roi := points.roi(name), points.volume[roi.mask]) for name in names}
    table: dict[str, dict[str, RoiDose]] = {}
    for scenario, dose in doses.items():
        flat = dose.detach().cpu()
        table[scenario] = {}
        for name, (roi, volume) in own.items():
            here = flat[roi.mask]
            table[scenario][name] = here if bool((volume == 1.0).all()) else VolumeDoses(here, volume)
    return table


def roi_metrics(dose: RoiDose) -> dict[str, float]:
    """The standard metrics of one ROI from its doses, Gy, units in the names; `voxels` is its volume in voxels, rounded."""
    d95, d98, d2 = d(dose, 95.0, 98.0, 2.0)
    return {
        "voxels": round(voxel_count(dose)),
        "d95_gy": d95,
        "d98_gy": d98,
        "d2_gy": d2,
        "mean_gy": mean_dose(dose),
        "min_gy": float(values(dose).min()),
        "max_gy": float(values(dose).max()),
    }


def letd_table(letd: Doses) -> list[dict]:
    """The `letd` part of `metrics.json`, keV/um: `L_q` is the LETd that the q % of the volume with the highest have at least."""
    rows = []
    for name, rois in letd.items():
        own = {}
        for roi, one in rois.items():
            l98, l50, l2 = d(one, 98.0, 50.0, 2.0)
            own[roi] = {
                "mean_kev_um": mean_dose(one), "l98_kev_um": l98, "l50_kev_um": l50, "l2_kev_um": l2,
                "max_kev_um": float(values(one).max()),
            }  # fmt: skip
        rows.append({"name": name, "rois": own})
    return rows


def scenario_table(doses: Doses) -> list[dict]:
    """`[{"name": scenario, "rois": {roi: metrics}}]`, the `scenarios` part of `metrics.json`."""
    return [{"name": name, "rois": {roi: roi_metrics(dose) for roi, dose in rois.items()}} for name, rois in doses.items()]


def worst_table(scenarios: list[dict]) -> dict[str, dict[str, float]]:
    """The worst of each metric over the scenarios of `scenario_table`: the lowest D95 and D98, the highest D2 and maximum."""
    worst = {}
    for roi in scenarios[0]["rois"]:
        rows = [scenario["rois"][roi] for scenario in scenarios]
        worst[roi] = {
            name: pick(row[name] for row in rows) for name, pick in (("d95_gy", min), ("d98_gy", min), ("d2_gy", max), ("max_gy", max))
        }
    return worst


def write_dvh_csv(path: str | Path, doses: Doses, n_points: int = 400, columns: Sequence[str] = DVH_COLUMNS) -> None:
    """Every DVH on one common dose axis, as `scenario,roi,dose_gy,volume_percent`, or LETd's with `LETD_COLUMNS`; the file appears only
    when it is whole.
    """
    axis = common_axis(doses, n_points)
    labels = [f"{value:.6g}" for value in axis.tolist()]
    with whole_or_nothing(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for scenario, rois in doses.items():
            for roi, dose in rois.items():
                writer.writerows(
                    (scenario, roi, label, f"{volume:.6g}") for label, volume in zip(labels, dvh(dose, axis).tolist(), strict=True)
                )


@reader("DVH table")
def read_dvh_csv(path: str | Path) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """`{scenario: {roi: (dose in Gy, volume in %)}}` as `write_dvh_csv` wrote them."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no DVH table at {path}; the run is incomplete, or the folder is no run folder")
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != DVH_COLUMNS:
            raise InputError(f"{path}: the columns must be {','.join(DVH_COLUMNS)}, got {','.join(rows.fieldnames or ())[:200]}")
        for row in rows:
            doses, volumes = curves.setdefault(row["scenario"], {}).setdefault(row["roi"], ([], []))
            dose, volume = float(row["dose_gy"]), float(row["volume_percent"])
            if not (math.isfinite(dose) and -1e-6 <= volume <= 100.0 + 1e-6):
                raise InputError(f"{path}, line {rows.line_num}: no finite dose and volume of 0 to 100 %: {dose:g}, {volume:g}")
            doses.append(dose)
            volumes.append(volume)
    axes = [doses for rois in curves.values() for doses, _ in rois.values()]
    if not axes or any(axis != axes[0] for axis in axes):
        raise InputError(f"{path}: every curve must have the same doses; the file is {'cut off or altered' if axes else 'empty'}")
    return {
        scenario: {
            roi: (torch.tensor(doses, dtype=torch.float64), torch.tensor(volumes, dtype=torch.float64))
            for roi, (doses, volumes) in rois.items()
        }
        for scenario, rois in curves.items()
    }
