"""What a finished plan is looked at with: physical doses, and LETd x dose, on points in ROIs and in voxels of the body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimpt.case import Case
from torchimpt.dose.body import BodyDoses, body_doses
from torchimpt.dose.looks import look_points
from torchimpt.dose.scenarios import scenario_operators
from torchimpt.evaluate.dvh import RoiDose
from torchimpt.evaluate.tables import point_doses, roi_doses
from torchimpt.machine import Machine
from torchimpt.objectives import MaxDose
from torchimpt.patient import Patient
from torchimpt.planning.letd import quantity, weighted
from torchimpt.planning.load import Compute, dose_options
from torchimpt.points import Points, voxel_points
from torchimpt.processes import ALONE, Team
from torchimpt.scenarios import Scenario
from torchimpt.spots import Spots
from torchimpt.watch import Progress

Tables = dict[str, dict[str, RoiDose]]
"""`{scenario: {roi: values}}`."""


def asked_voxels(case: Case, patient: Patient, whole: bool = False) -> torch.Tensor:
    """Mask `(z, y, x)` of the voxels of the dose grid that are told in every scenario: of the body, where a goal or an objective other than
    `max_dose` is about it, where there is no other ROI, or when the `whole` is asked for; else none, as ROIs are looked at on points.
    """
    body = "" if patient.external is None else patient.external.name
    told = any(goal.roi == body or goal.metric == "ci" for goal in case.goal)
    told = told or any(term.roi == body and not isinstance(term, MaxDose) for term in case.terms())
    return patient.body_and_rois if whole or told or not _organs(patient) else torch.zeros(patient.grid.shape, dtype=torch.bool)


def _organs(patient: Patient) -> list[str]:
    """ROIs with voxels, but the body."""
    return [name for name, roi in patient.rois.items() if roi.role != "external" and bool(roi.mask.any())]


def case_targets(case: Case, patient: Patient) -> list[str]:
    """ROIs that the case prescribes dose to or covers with spots; the patient's targets where there is none."""
    return [*dict.fromkeys((*case.prescriptions(), *(case.spots.targets if case.spots else ())))] or [*patient.targets]


def _seen_targets(case: Case, patient: Patient) -> list[str]:
    """Those of `case_targets` that the dose grid has a voxel of."""
    return [name for name in case_targets(case, patient) if bool(patient.roi(name).mask.any())]


def targets_mask(case: Case, patient: Patient) -> torch.Tensor:
    """Mask `(z, y, x)` of `case_targets`; empty where there is none."""
    targets = _seen_targets(case, patient)
    return patient.union(targets) if targets else torch.zeros(patient.grid.shape, dtype=torch.bool)


def case_points(
    case: Case,
    patient: Patient,
    machine: Machine,
    spots: Spots,
    rois: Sequence[str],
    n_scenarios: int,
    seed: int,
    whole: Sequence[str] = (),
) -> Points:
    """Points in ROIs as the case asks for them, finer in its targets, and in all parts of the ROIs `whole`."""
    return look_points(
        patient, machine, spots, rois, _seen_targets(case, patient), spacing=case.dose.target_grid_mm, n_scenarios=n_scenarios, seed=seed,
        whole=whole,
    )  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What was seen of a plan in scenarios, on the CPU.

    Attributes
    ----------
    case, patient, names
        Whose, and the scenarios' names, nominal first.
    organs, points
        ROIs that have points, and these.
    dose, letd_dose
        Physical dose, Gy, and LETd x dose, Gy keV/um, at the points `(n_scenarios, n_points)`; the second None where it is not told.
    body
        Means over voxels.
    everywhere
        Whether every scenario was looked at in the whole body.
    """

    case: Case
    patient: Patient
    names: tuple[str, ...]
    organs: tuple[str, ...]
    points: Points
    dose: Tensor
    letd_dose: Tensor | None
    body: BodyDoses
    everywhere: bool

    def on_points(self, name: str = "dose") -> dict[str, Tensor]:
        """A quantity at the points `(n_points,)` of every scenario, in its unit; `"dose"` as the case weights it."""
        return self._of(self._values(name, self.points, self.dose, self.letd_dose, torch.arange(len(self.points))))

    def on_voxels(self, name: str = "dose") -> dict[str, Tensor]:
        """Likewise in the voxels that every scenario was looked at in `(m,)`."""
        return self._of(self._values(name, self.patient, self.body.doses, self.body.letd_doses, self.body.voxels))

    def nominal(self) -> Tensor:
        """Nominal dose `(n_grid,)`, Gy, as the case weights it; 0 outside body and ROIs."""
        return self.whole(
            self._values("dose", self.patient, self.body.nominal, self.body.nominal_letd_dose, self.body.body), self.body.body
        )

    def whole(self, values: Tensor, voxels: Tensor | None = None) -> Tensor:
        """Values in the voxels of `on_voxels`, or in others, on the whole grid `(n_grid,)`, 0 elsewhere."""
        grid = torch.zeros(self.patient.grid.n_voxels, dtype=values.dtype)
        return grid.index_put_((self.body.voxels if voxels is None else voxels,), values)

    def tables(self, name: str = "dose") -> Tables:
        """A quantity by scenario and ROI: of points, and of all the body's voxels where they are told."""
        # points in organs are in the body, too, but are not all of it
        found = point_doses(self.points, self.on_points(name), self.organs)
        if self.everywhere and self.patient.external is not None:
            body = self.patient.external
            for scenario, own in roi_doses(replace(self.patient, rois={body.name: body}), self.on_voxels(name), self.body.voxels).items():
                found[scenario] |= own
        return {scenario: {roi: rois[roi] for roi in self.patient.rois if roi in rois} for scenario, rois in found.items()}

    def _of(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, values, strict=True))

    def _values(self, name: str, regions: Patient | Points, dose: Tensor, letd_dose: Tensor | None, entries: Tensor) -> Tensor:
        if name == "dose":
            return weighted(self.case, regions, dose, letd_dose, entries)
        assert letd_dose is not None  # by `Case.tells_letd`
        return quantity(self.case, name, regions, entries).value(dose, letd_dose)


def look(
    case: Case,
    patient: Patient,
    machine: Machine,
    spots: Spots,
    scenarios: Sequence[Scenario],
    compute: Compute,
    progress: Progress,
    whole: bool = False,
    team: Team = ALONE,
) -> Look:
    """Compute a plan's doses without matrices, in the nominal scenario first and in all others; `whole`: all in the whole body.

    The points are other ones than a plan is made with. Among several processes each computes its scenarios; the one that leads has them all
    in the end, the others' looks hold their own.
    """
    team = team.share(len(scenarios))
    prescription = case.highest_prescription()
    options = dose_options(case, compute.device, spots.weight.dtype)
    here, organs = spots.weighted().to(compute.device), _organs(patient)
    with progress.stage("Dose in every scenario", total=2 * len(scenarios)) as stage:
        body = body_doses(
            patient, machine, here, scenarios, asked=asked_voxels(case, patient, whole).flatten(),
            level=torch.inf if prescription is None else prescription, leave=targets_mask(case, patient).flatten(),
            quantity=case.quantity(), discarded=True, letd=case.tells_letd, team=team, done=stage.advance, means=True, **options,
        )  # fmt: skip
        letd_doses = None if body.letd_doses is None else team.collect(body.letd_doses)
        body = replace(body, doses=team.collect(body.doses), letd_doses=letd_doses)
        points = voxel_points(patient, torch.zeros(0, dtype=torch.int64))
        if organs:
            # a plan is made with the case's own seed
            points = case_points(case, patient, machine, spots, organs, len(scenarios), case.seed + 1)
        found = []
        for amplitude in ("dose", "letd_dose") if case.tells_letd else ("dose",):
            rows = [torch.zeros(0)] * len(team.own(scenarios))
            own = {**options, "amplitude": amplitude, "team": team}
            operators = scenario_operators(patient, machine, here, points, scenarios, **own) if organs else ()
            for k, operator in enumerate(operators):
                rows[k] = operator.dose(here.position.detach(), here.weight.detach()).cpu()
                if amplitude == "dose":
                    stage.advance()
            found.append(team.collect(torch.stack(rows)))
    mask = torch.zeros(patient.grid.n_voxels, dtype=torch.bool)
    mask[body.voxels] = True
    names = tuple(scenario.name for scenario in scenarios)
    letd_dose = found[1] if case.tells_letd else None
    return Look(case, patient, names, tuple(organs), points, found[0], letd_dose, body, bool(mask[body.body].all()))
