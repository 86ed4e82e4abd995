"""A bench: one case and its scenarios, many plans of it, all judged alike on a grid that none of them was optimized on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchimpt.case import Case, load_case
from torchimpt.dose.scenarios import ScenarioDoses, scenario_doses
from torchimpt.evaluate.tables import point_doses, roi_metrics
from torchimpt.geometry import Beam
from torchimpt.machine import Machine
from torchimpt.objectives import Objective, RobustObjective
from torchimpt.patient import Patient
from torchimpt.planning.load import load_machine, load_patient, resolve_beams
from torchimpt.planning.look import case_points
from torchimpt.points import Points, cell_points
from torchimpt.quantities import Quantity
from torchimpt.scenarios import NOMINAL, Scenario, boundary_scenarios
from torchimpt.schemes.settings import Solver
from torchimpt.schemes.stages import Optimized
from torchimpt.spots import Spots
from torchimpt.spots.delivery import DeliveryModel, delivered, delivery_time
from torchimpt.spots.placement import place_spots

log = logging.getLogger(__name__)

DELIVERABLE = ("pruned", "l1", "moved", "fixed")
"""Series, up to a comma, whose plans are made for the minimum MU; the others are counted without one."""


@dataclass
class Bench:
    """One case and its scenarios: everything that plans share, and the plans.

    Attributes
    ----------
    case, patient, machine, beams, scenarios
        What is planned.
    objective, points, robust, quantity
        What is asked, where it is looked at, over the scenarios, and of what.
    model
        Delivery, with the minimum MU of plans that have one.
    solver, fixed
        Settings for spots that move and for those that do not.
    plans
        A row of figures and the spots of every plan noted.
    """

    case: Case
    patient: Patient
    machine: Machine
    beams: tuple[Beam, ...]
    scenarios: tuple[Scenario, ...]
    objective: Objective
    points: Points
    robust: RobustObjective
    quantity: Quantity
    model: DeliveryModel
    solver: Solver
    fixed: Solver
    plans: list[tuple[dict[str, Any], Spots]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        path: str | Path,
        n_scenarios: int,
        *,
        grid: float = 4.0,
        margin: float = 8.0,
        asking: bool = False,
        min_mu: float = 0.01,
        iterations: int = 200,
        fixed_iterations: int = 600,
        tolerance: float = 1e-4,
        shifter: bool = True,
    ) -> Bench:
        """The bench of a case file, nominal (1 scenario) or with the nine of 3 mm and 3 %.

        Parameters
        ----------
        path
            The case file.
        n_scenarios
            1, or any other number for nine.
        grid, margin
            Dose grid and spot margin, mm, in the place of the case's. (At 5 mm uniform grids lack spots at the target's edge.)
        asking
            Mean-dose objectives ask for 0 Gy.
        min_mu
            Least MU of a spot in a fraction, for plans that have a minimum.
        iterations, fixed_iterations
            Most iterations with spots that move, and without.
        tolerance
            Of every solver.
        shifter
            False: without the range shifters that the case asks for.
        """
        case = load_case(path, [f"dose.grid_mm={grid}", f"spots.margin_mm={margin}"])
        if not shifter:
            case = case.model_copy(update={"beam": [beam.model_copy(update={"range_shifter_mm": 0}) for beam in case.beam]})
        if asking:
            asked = [o.model_copy(update={"dose_gy": 0.0}) if o.kind == "mean_dose" else o for o in case.objective]
            case = case.model_copy(update={"objective": asked})
        patient, machine = load_patient(case), load_machine(case)
        # these comparisons tell schemes apart; an objective of the whole body would be most of their time
        asked = [o for o in case.objective if patient.roi(o.roi).role != "external"]
        case = case.model_copy(update={"objective": asked})
        objective = Objective(case.terms(), normalize=case.optimizer.normalize, overlap=case.optimizer.overlap)
        scenarios, beams = boundary_scenarios(3.0, 3.0) if n_scenarios > 1 else (NOMINAL,), resolve_beams(case, patient)
        # one set of points for all plans, close enough for the layers that most of them have
        usual = place_spots(patient, machine, beams, case.placement.targets, margin=margin, scenarios=scenarios)
        points = case_points(case, patient, machine, usual, [term.roi for term in objective.terms], len(scenarios), case.seed)
        return cls(
            case=case,
            patient=patient,
            machine=machine,
            beams=usual.beams,
            scenarios=scenarios,
            objective=objective,
            points=points,
            robust=RobustObjective(objective.at(points, points.volume), quantity=case.quantity()),
            quantity=case.quantity(),
            model=replace(DeliveryModel(), min_mu=min_mu),
            solver=Solver(max_iterations=iterations, tolerance=tolerance),
            fixed=Solver(max_iterations=fixed_iterations, tolerance=tolerance),
        )

    def place(
        self, spacing: float, jitter: float = 0.0, seed: int = 0, layer_spacing: float | str | None = None, margin: float | None = None
    ) -> Spots:
        """A grid of spots, moved at random by up to `jitter` mm; layers and margin as the case has them, or others."""
        config = self.case.placement
        spots = place_spots(
            self.patient, self.machine, self.beams, config.targets, spacing, margin=margin or config.margin_mm,
            layer_spacing=layer_spacing or config.layer_spacing, scenarios=self.scenarios,
        )  # fmt: skip
        noise = torch.rand(spots.position.shape, generator=torch.Generator().manual_seed(seed))
        spots.position.data += jitter * (2.0 * noise - 1.0)
        return spots

    def doses(self, spots: Spots) -> ScenarioDoses:
        """In every scenario, at the objective's points."""
        return scenario_doses(self.patient, self.machine, spots, self.points, self.scenarios)

    def add(self, series: str, label: str, placed: Spots, optimized: Optimized, seconds: float, n_placed: int | None = None) -> dict:
        """Note a plan of the spots `placed`; `n_placed` where more had been placed before."""
        time_model = self.model if series.split(",")[0] in DELIVERABLE else replace(self.model, min_mu=0.0)
        spots, solution = optimized.spots.spots(placed), optimized.solution
        used = delivered(spots, self.machine, time_model)
        row = {
            "series": series, "label": label, "placed": n_placed or placed.n_spots, "spots": spots.n_spots, "delivered": int(used.sum()),
            "objective": solution.value, "iterations": solution.iterations, "evaluations": solution.evaluations,
            "status": solution.status.value, "seconds": seconds, "moved_mm": float(optimized.spots.moved()[used].mean()),
            "delivery": delivery_time(spots, self.machine, time_model), "steps": optimized.steps,
        }  # fmt: skip
        self.plans.append((row, spots))
        log.info(
            "%-9s %-22s %6d spots %6d delivered  objective %10.2f  %5.1f s  %s",
            series, label, row["spots"], row["delivered"], row["objective"], seconds, row["status"],
        )  # fmt: skip
        return row

    def judge(self, grid: float) -> None:
        """Metrics and objective of every plan on another dose grid, mm, into its row: one set of tables for all plans, side by side."""
        fine = load_patient(self.case.model_copy(update={"dose": self.case.dose.model_copy(update={"grid_mm": grid})}))
        rois = list(dict.fromkeys(term.roi for term in self.case.terms()))
        points = cell_points(fine, rois, jitter=False)
        robust = RobustObjective(self.objective.at(points, points.volume), quantity=self.quantity)
        everything, owner = self._side_by_side()
        position, weight = everything.position.detach(), everything.weight.detach()
        metrics: list[dict] = [{} for _ in self.plans]
        values = [0.0] * len(self.plans)
        for scenario in self.scenarios:
            operator = scenario_doses(fine, self.machine, everything, points, (scenario,))[0]
            for k in range(len(self.plans)):
                dose = operator.dose(position, torch.where(owner == k, weight, 0.0))
                values[k] += float(robust.value(dose[None]))
                told = point_doses(points, {scenario.name: self.quantity.value(dose)}, rois)[scenario.name]
                metrics[k][scenario.name] = {name: roi_metrics(own) for name, own in told.items()}
        for (row, _), by_scenario, value in zip(self.plans, metrics, values, strict=True):
            row["fine"] = {"objective": value, "nominal": by_scenario[NOMINAL.name], "worst": worst(by_scenario)}

    def _side_by_side(self) -> tuple[Spots, Tensor]:
        """The spots of all plans as one, and whose each is."""
        columns = {
            key: torch.cat([getattr(s, key).detach().cpu().double() for _, s in self.plans])
            for key in ("beam", "energy", "weight", "shifted")
        }
        position = torch.cat([s.position.detach().double() for _, s in self.plans])
        owner = torch.cat([torch.full((s.n_spots,), float(k)) for k, (_, s) in enumerate(self.plans)])
        everything, owners = (
            Spots.from_columns(
                self.beams,
                columns["beam"].long(),
                columns["energy"],
                position[:, 0],
                position[:, 1],
                weight,
                shifted=columns["shifted"].bool(),
            )
            for weight in (columns["weight"], owner)
        )
        return everything, owners.weight.detach().long()


def worst(by_scenario: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Least D95 and D98, largest D2 and mean over scenarios, of `{scenario: {roi: metrics}}`."""
    return {
        roi: {
            key: (min if key in ("d95_gy", "d98_gy") else max)(rois[roi][key] for rois in by_scenario.values())
            for key in ("d95_gy", "d98_gy", "d2_gy", "mean_gy")
        }
        for roi in next(iter(by_scenario.values()))
    }
