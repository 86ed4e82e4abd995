"""Run with the Python of an environment that has pyRadPlan, by `test_pyradplan.py`; prints numbers as JSON.

    PYTHON pyradplan_script.py CHECKOUT SITE_PACKAGES FOLDER

Compares three ways of one plan on TG-119, three beams with a couch angle: pyRadPlan's objects, the `.mat` file that pyRadPlan writes of them
in matRad's layout, and pyRadPlan's reading of the file that this package writes; and the dose that both programs compute.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, sys.argv[1])
sys.path.append(sys.argv[2])  # behind its own: torch and what else this package needs
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import pyRadPlan as prp  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import torch  # noqa: E402
from scipy.io import savemat  # noqa: E402

import torchimpt as ti  # noqa: E402
from torchimpt.io.matrad.export import FILE, Wanted, export_matrad  # noqa: E402
from torchimpt.resampling import values_on  # noqa: E402

SPACING = 5.0


def planned() -> tuple:
    """CT, structure set, plan, steering information and weights."""
    ct, cst = prp.load_tg119()
    plan = prp.IonPlan(num_of_fractions=30)
    plan.prop_stf = {"gantry_angles": [0, 70, 250], "couch_angles": [0, 30, 0], "bixel_width": 12, "longitudinal_spot_spacing": 8.0}
    plan.prop_dose_calc = {"dose_grid": {"resolution": dict.fromkeys("xyz", SPACING)}}
    stf = prp.generate_stf(ct, cst, plan)
    weights = np.random.default_rng(3).uniform(0.5, 1.5, stf.total_number_of_bixels)
    return ct, cst, plan, stf, weights


def main() -> None:
    folder = Path(sys.argv[3])
    ct, cst, plan, stf, weights = planned()
    found = ti.from_pyradplan(ct, cst, plan, stf, weights, dtype=torch.float64)
    spots, patient = found.spots, found.patient
    numbers = {
        "version": prp.__version__,
        "beams": [(b.gantry, b.couch, b.isocenter) for b in found.beams],
        "spots": spots.n_spots,
        "bixels": stf.total_number_of_bixels,
        "weight": float(spots.weight.detach().sum() / weights.sum()),
        "terms": [(t.roi, t.kind, t.dose, t.weight) for t in found.terms],
        "rois": {name: (roi.role, int(roi.mask.sum())) for name, roi in patient.rois.items()},
        "fractions": found.fractions,
        "centroid_off": float(np.abs(np.array(patient.centroid("OuterTarget")) - cst.target_center_of_mass()).max()),
        "remarks": found.remarks,
    }
    # the same plan by pyRadPlan's own file in matRad's layout
    theirs = folder / "theirs.mat"
    content = {"ct": ct.to_matrad(), "cst": cst.to_matrad(), "stf": _stf(stf), "pln": {"numOfFractions": 1.0, "radiationMode": "protons"}}
    savemat(theirs, {**content, "resultGUI": {"w": weights[:, None]}})
    by_file = ti.read_plan(theirs, dtype=torch.float64)
    numbers["file_same"] = all(
        torch.equal(getattr(spots, name), getattr(by_file, name)) for name in ("position", "weight", "layer", "layer_energy")
    )
    numbers["file_beams"] = [(b.gantry, b.couch, b.isocenter) for b in by_file.beams]

    # dose of both programs
    own = prp.calc_dose_forward(ct, cst, stf, plan, weights)
    image = own["physical_dose"]
    mine = sitk.GetArrayFromImage(image)
    machine = ti.machine.READERS["matrad"](Path(prp.__file__).parent / "data" / "machines" / "protons_Generic.mat")
    coarse = ti.resample(patient, SPACING)
    with torch.no_grad():
        dose = ti.PencilBeamDose(coarse, machine, found.beams, rbe=1.0).double()(spots).reshape(coarse.grid.shape)
    ours = values_on(dose, coarse.grid, patient.grid).numpy()
    high = mine > 0.5 * mine.max()
    numbers["dose"] = {
        "shape": mine.shape == ours.shape,
        "rms": float(np.sqrt(np.mean((ours - mine)[high] ** 2)) / mine.max()),
        "integral": float(ours[patient.body.numpy()].sum() / mine[patient.body.numpy()].sum()),
        "centroid": np.abs(_centroid(ours, patient.grid) - _centroid(mine, patient.grid)).max(),
        "mirrored": float(np.sqrt(np.mean((ours[:, :, ::-1] - mine)[high] ** 2)) / mine.max()),
    }
    # and what this package writes, read by pyRadPlan
    export_matrad(
        folder / "m", patient, machine, spots, dose=values_on(dose, coarse.grid, patient.grid), wanted=Wanted(1, 1.0, _rows(found.terms))
    )
    back_ct, back_cst, back_stf = _read(folder / "m" / FILE)
    again = ti.from_pyradplan(back_ct, back_cst, None, back_stf)
    numbers["back"] = {
        "ct": bool(np.array_equal(sitk.GetArrayFromImage(back_ct.cube_hu), sitk.GetArrayFromImage(ct.cube_hu).astype(np.float32))),
        "rois": {name: int(roi.mask.sum()) for name, roi in again.patient.rois.items()},
        "terms": [(t.roi, t.kind, t.dose, t.weight) for t in again.terms],
        "spots": again.spots.n_spots,
        "beams": [(b.gantry, b.couch, b.isocenter) for b in again.beams],
    }
    print(json.dumps(numbers, default=str))


def _stf(stf: prp.SteeringInformation) -> np.ndarray:
    """matRad's struct of it, field by field: pyRadPlan 0.5.0's own `to_matrad` of steering information ends in a TypeError."""

    def structs(rows: list[dict]) -> np.ndarray:
        found = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
        for i, row in enumerate(rows):
            found[0, i] = tuple(row.values())
        return found

    return structs([
        {
            "gantryAngle": beam.gantry_angle, "couchAngle": beam.couch_angle, "isoCenter": beam.iso_center[None], "SAD": beam.sad,
            "ray": structs([
                {"rayPos_bev": ray.ray_pos_bev[None], "rayPos": ray.ray_pos[None], "energy": np.array([[b.energy for b in ray.beamlets]])}
                for ray in beam.rays
            ]),
        }
        for beam in stf.beams
    ])  # fmt: skip


def _centroid(dose: np.ndarray, grid: ti.Grid) -> np.ndarray:
    weight = torch.from_numpy(np.ascontiguousarray(dose)).double().flatten()
    return ((grid.centers() * weight[:, None]).sum(0) / weight.sum()).numpy()


def _rows(terms: tuple) -> list[dict]:
    return [{"roi": t.roi, "kind": t.kind, "dose_gy": t.dose, "weight": t.weight, "mode": "nominal"} for t in terms]


def _read(path: Path) -> tuple:
    """pyRadPlan's objects of a file in matRad's layout, by its own readers."""
    import pymatreader

    ct, cst = prp.load_patient(path)
    return ct, cst, prp.validate_stf(pymatreader.read_mat(str(path), variable_names=["stf"])["stf"])


main()
