"""The doses of all scenarios: one function of positions and weights, and at fixed positions one linear map.

    D^k_v = sum_s w_s phi^k(v, s; x_s),    k = 1 .. n_scenarios

`ScenarioDoses` is the function, with its gradient: derived by hand, or in `AutogradDoses` torch's. `ScenarioDoses.at(position)` is the
map `w -> D` with `forward`, `adjoint`, `columns`: as stored matrices, or matrix-free. All give the same numbers, compressed matrices to
0.03 %. Stored matrices are faster per product once they are built; the pair kernel needs little memory and follows spots that move
(`torchimpt.dose.engines` chooses). Doses are physical.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from torchimpt.checks import InputError, PhysicsWarning, nearest
from torchimpt.dose.cutoff import DEFAULT_CUTOFF, check_cutoff
from torchimpt.dose.group import Group, partials_of, rows_of
from torchimpt.dose.influence import compressed_matrices, influence_matrices
from torchimpt.dose.linear import LinearDose, StoredDose
from torchimpt.dose.model import Partials, Surroundings
from torchimpt.dose.models import DEFAULT_MODEL, dose_model
from torchimpt.dose.operator import DoseOperator
from torchimpt.dose.rows import COARSER, BeamRows, beam_rows
from torchimpt.dose.shares import Place, Placement, Share, contributions, gathered, shares
from torchimpt.dose.voxel_mean import mean_rows, widened
from torchimpt.machine import LayerTables, Machine
from torchimpt.memory import check_memory
from torchimpt.patient import Patient
from torchimpt.physics.stopping import relative_stopping_power
from torchimpt.points import Points, voxel_points
from torchimpt.processes import ALONE, Team
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots import Spots
from torchimpt.spots.shifter import check_gaps


class ScenarioDoses(Sequence[DoseOperator]):
    """Doses of every scenario, as a function of positions and weights; a sequence of one operator a scenario.

    Among several processes the operators, and the rows of doses and residuals, are those of this process's scenarios; gradients are sums
    over all.

    Parameters
    ----------
    operators
        One a scenario.
    team
        The processes that the scenarios are shared out among.
    names
        Of all scenarios; the operators' when left out.
    """

    def __init__(self, operators: Sequence[DoseOperator], team: Team = ALONE, names: Sequence[str] | None = None) -> None:
        self.operators, self.team = tuple(operators), team
        self.names = tuple(operator.scenario.name for operator in operators) if names is None else tuple(names)

    @cached_property
    def shares(self) -> tuple[Share, ...]:
        """Which scenarios lie on which device."""
        return shares([operator.device for operator in self.operators])

    @cached_property
    def _groups(self) -> dict[int, Group]:
        return {share.begin: Group(self.operators[share.begin : share.end]) for share in self.shares}

    def __len__(self) -> int:
        return len(self.operators)

    def __iter__(self) -> Iterator[DoseOperator]:
        return iter(self.operators)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int or slice, as of a tuple
        return self.operators[index]

    @property
    def nominal(self) -> int:
        """Index of the nominal scenario; of the first where it is not among them."""
        return self.names.index(NOMINAL.name) if NOMINAL.name in self.names else 0

    @property
    def n_voxels(self) -> int:
        """Size of each scenario's dose vector."""
        return self.operators[0].n_voxels

    @property
    def n_spots(self) -> int:
        """Size of the weight vector."""
        return self.operators[0].n_spots

    @property
    def n_bytes(self) -> int:
        """Memory of all tables."""
        return sum(operator.n_bytes for operator in self.operators)

    def dose(self, position: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`D` `(n_scenarios, n_voxels)`, Gy, of spots at `position` `(n_spots, 2)` with `weight` `(n_spots,)`."""
        return gathered(self.shares, lambda share, *spots: self._groups[share.begin].dose(*spots), position, weight)

    def gradient(self, residual: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, move: bool = True) -> Partials:
        """Gradients for `residual = dF/dD` `(n_scenarios, n_voxels)`, summed over scenarios; positions are left out unless `move`."""
        work = lambda share, r, x, w: self._groups[share.begin].gradients(r, x, w, move)  # noqa: E731
        return partials_of(self.team.sum(contributions(self.shares, work, residual, position, weight)))

    def of_nominal(self, make: Callable[[DoseOperator], torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """What `make` finds in the nominal scenario's operator, on every process; `like` has its shape, dtype and device."""
        place = self.nominal - self.team.own(range(len(self.names)))[0]
        return self.team.of(self.nominal, lambda: make(self.operators[place]), like)

    def subset(self, index: torch.Tensor) -> ScenarioDoses:
        """Those of the spots `index` `(n_kept,)`, ascending."""
        return self if index.numel() == self.n_spots else self.like([operator.subset(index) for operator in self.operators])

    def like(self, operators: Sequence[DoseOperator]) -> ScenarioDoses:
        """Other operators of the same scenarios, with the same way to the gradient."""
        return type(self)(operators, self.team, self.names)

    def at(self, position: torch.Tensor, engine: str = "matrix_free") -> LinearDose:
        """The linear map from weights to doses, for spots that stay at `position` `(n_spots, 2)`; `engine` is a key of `ENGINES`."""
        if engine not in ENGINES:
            raise InputError(f"engine must be one of {', '.join(ENGINES)}, got '{engine}'{nearest(engine, ENGINES)}")
        return ENGINES[engine](self, position.detach())


class AutogradDoses(ScenarioDoses):
    """The same by torch's autograd through the plain dense formula, on request: for comparison, not for speed."""

    def dose(self, position: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`D` `(n_scenarios, n_voxels)`, every pair computed."""
        return torch.stack([operator.dense_dose(position.detach(), weight.detach()) for operator in self.operators])

    def gradient(self, residual: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, move: bool = True) -> Partials:
        """The gradient of `sum_k r^k' D^k`, one scenario after the other, so that the pairs of one are stored at a time."""
        at = weight.detach().requires_grad_(), position.detach().requires_grad_(move)
        by = at if move else at[:1]

        def partials(operator: DoseOperator, row: torch.Tensor) -> Partials:
            image = operator.dense_dose(at[1], at[0]) @ row
            if not image.requires_grad:  # no beam reaches any voxel
                return Partials(torch.zeros_like(at[0]), torch.zeros_like(at[1]) if move else None)
            return Partials(*torch.autograd.grad(image, by, materialize_grads=True), *([] if move else [None]))

        each = (partials(operator, row) for operator, row in zip(self.operators, residual, strict=True))
        return partials_of(self.team.sum(rows_of(found) for found in each))

    def at(self, position: torch.Tensor, engine: str = "matrix_free") -> LinearDose:
        """The linear map for spots that stay; nothing is stored for its gradient, whatever the engine."""
        return super().at(position, "matrix_free")


GRADIENTS: dict[str, type[ScenarioDoses]] = {"analytic": ScenarioDoses, "autograd": AutogradDoses}
"""Ways to the gradient."""

AMPLITUDES: dict[str, Callable[..., LayerTables]] = {"dose": Machine.layers, "letd_dose": Machine.letd_layers}
"""What the operators sum up, from what `Machine.layers` takes: dose, or dose times LETd, by the same pair kernel."""

PAIR_BYTES = 40
"""About what autograd keeps of a float32 pair of spot and voxel."""


class MatrixFreeDose:
    """The pair kernel at fixed positions, nothing stored but the operators' tables."""

    n_nonzeros = 0

    def __init__(self, doses: ScenarioDoses, position: torch.Tensor) -> None:
        self.doses, self.position, self.n_bytes = doses, position, doses.n_bytes

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`D^k = A^k w` for every scenario."""
        return self.doses.dose(self.position, weight)

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`sum_k A^k' r^k`."""
        return self.doses.gradient(residual, self.position, torch.zeros_like(self.position[:, 0]), move=False).weight

    def columns(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A^k[:, spots] change` for every scenario: spots of weight zero cost nothing."""
        return self.forward(torch.zeros_like(self.position[:, 0]).index_copy(0, spots, change))

    def release(self) -> None:
        """There are no matrices."""


ENGINES: dict[str, Callable[[ScenarioDoses, torch.Tensor], LinearDose]] = {
    "matrix": lambda doses, position: StoredDose(influence_matrices(doses, position), doses.team),
    "compressed": lambda doses, position: StoredDose(compressed_matrices(doses, position), doses.team),
    "matrix_free": MatrixFreeDose,
}
"""Ways to the linear map."""


def scenario_doses(
    patient: Patient,
    machine: Machine,
    spots: Spots,
    voxels: torch.Tensor | Points,
    scenarios: Sequence[Scenario] = (NOMINAL,),
    *,
    cutoff: float = DEFAULT_CUTOFF,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | Placement = "cpu",
    model: str = DEFAULT_MODEL,
    backend: str = "auto",
    gradient: str = "analytic",
    amplitude: str = "dose",
    means: bool = False,
    team: Team = ALONE,
) -> ScenarioDoses:
    """Physical doses in every scenario, for the beams and layers of `spots`. Scenarios with one setup shift share their ray tracing.

    Parameters
    ----------
    patient
        CT and ROIs on the dose grid.
    machine
        Beam model.
    spots
        Read for its beams and layers, not for positions or weights.
    voxels
        What the dose vector stands for: flat grid indices `(n_voxels,)`, or points anywhere in the patient, of each scenario its own.
    scenarios
        Setup shifts and range scales.
    cutoff
        Lateral cut-off in sigmas.
    dtype, device, backend
        Of the tables and the products. A `Placement` gives scenarios to several devices.
    model
        A key of `torchimpt.dose.models.MODELS`. `"pencil_beam"`: each voxel's own ray.
    gradient
        A key of `GRADIENTS`; `"autograd"` computes every pair of spot and voxel, and stores those of one scenario.
    amplitude
        A key of `AMPLITUDES`: what a proton leaves at a depth. `"letd_dose"` gives LETd x dose, Gy keV/um, in the place of dose.
    means
        The mean over each voxel in the place of the dose in its middle (`torchimpt.dose.voxel_mean`); for voxels, not for points.
    team
        Processes that the scenarios are shared out among; operators are made of this one's.
    """
    if gradient not in GRADIENTS:
        raise InputError(f"gradient must be one of {', '.join(GRADIENTS)}, got '{gradient}'{nearest(gradient, GRADIENTS)}")
    if not scenarios:
        raise InputError("doses need at least one scenario, got none; give (NOMINAL,)")
    placement = device if isinstance(device, Placement) else Placement([Place(torch.device(device))])
    # tables are computed on the CPU; of several devices it is known once the first of them are there which ones the others go to
    device = placement.places[0].device if len(placement.places) == 1 else torch.device("cpu")
    if gradient == "autograd":
        if len(placement.places) > 1:
            raise InputError("gradient 'autograd' computes on one device; take gradient 'analytic', or --device cpu or cuda")
        pairs = len(voxels) * spots.n_spots
        what = f"autograd's {pairs:.2g} pairs of {len(voxels):,} voxels and {spots.n_spots:,} spots"
        check_memory(what, pairs * PAIR_BYTES * torch.finfo(dtype).bits / 32, device, "use gradient = 'analytic', which stores none")
    operators: list[DoseOperator] = []
    for operator in scenario_operators(
        patient, machine, spots, voxels, scenarios, cutoff=cutoff, dtype=dtype, device=device, model=model, backend=backend,
        amplitude=amplitude, means=means, team=team,
    ):  # fmt: skip
        if not operators:
            devices = placement.devices(operator, len(team.own(scenarios)))
            for where in dict.fromkeys(devices):
                if more := devices.count(where) - (where.type == operator.device.type):
                    check_memory(f"the dose tables of {more} more scenarios", operator.n_bytes * more, where, COARSER)
        where = devices[len(operators)]
        operators.append(operator if operator.device == where else operator.to(where))
    return GRADIENTS[gradient](operators, team, [scenario.name for scenario in scenarios])


def scenario_operators(
    patient: Patient,
    machine: Machine,
    spots: Spots,
    voxels: torch.Tensor | Points,
    scenarios: Sequence[Scenario],
    *,
    cutoff: float = DEFAULT_CUTOFF,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    model: str = DEFAULT_MODEL,
    backend: str = "auto",
    amplitude: str = "dose",
    means: bool = False,
    team: Team = ALONE,
    rsp: torch.Tensor | None = None,
) -> Iterator[DoseOperator]:
    """The operators of `scenario_doses`, made one after the other: for those that need each one once, and not the memory of all.

    `rsp` is that of `patient.traced`, for those that call this again and again; None: it is looked up.
    """
    compute, device = dose_model(model, backend), torch.device(device)
    check_cutoff(cutoff)
    _check_positions(patient, spots)
    check_gaps(patient, spots, machine.sad)
    ct = patient.traced
    rsp = relative_stopping_power(ct, machine) if rsp is None else rsp
    if means and isinstance(voxels, Points):
        raise InputError("means over voxels need voxels, flat grid indices; points have the dose where they are")
    points = voxels if isinstance(voxels, Points) else voxel_points(replace(patient, rois={}), voxels.cpu())
    layer_beam, layer_energy, spot_layer = spots.layer_beam.cpu(), spots.layer_energy.cpu(), spots.layer.cpu()
    first_layer = torch.searchsorted(layer_beam, torch.arange(len(spots.beams) + 1))
    first_spot = torch.searchsorted(spot_layer, first_layer).tolist()
    used = [b for b in range(len(spots.beams)) if first_spot[b + 1] > first_spot[b]]
    spans = tuple((first_spot[b], first_spot[b + 1]) for b in used)
    layers = tuple((spot_layer[i:j] - first_layer[b]).to(device) for b, (i, j) in zip(used, spans, strict=True))
    cut = {b: slice(int(first_layer[b]), int(first_layer[b + 1])) for b in used}
    curves = {b: AMPLITUDES[amplitude](machine, layer_energy[cut[b]], spots.beams[b].shifter, spots.layer_shifted[cut[b]]) for b in used}
    if means:
        curves = {b: widened(tables, patient.grid.spacing, spots.beams[b]) for b, tables in curves.items()}
    # scenarios that look at the same points of a patient who lies in the same place share their rays
    traced: dict[tuple, dict] = {}
    own = team.own(range(len(scenarios)))  # points are of the scenario's place among all
    keys = [(scenarios[k].shift, k % len(points.places)) for k in own]
    left = Counter(keys)
    for k, key in zip(own, keys, strict=True):
        scenario = scenarios[k]
        shift, scale = scenario.shift, scenario.range_scale
        if key not in traced:
            where: Any = points.place(k)
            trace: Callable[..., BeamRows] = beam_rows
            if means and isinstance(voxels, torch.Tensor):
                where, trace = (patient.grid, voxels.cpu()), mean_rows
            traced[key] = {b: trace(rsp, ct.grid, where, spots.beams[b], machine.sad, shift, machine.air_from) for b in used}
        rows = traced[key]
        around = {b: Surroundings(rsp, ct.grid, spots.beams[b], machine.sad, shift, scale) for b in used}
        tables = tuple(compute.tabulate(rows[b], curves[b], around[b], dtype, device) for b in used)
        left[key] -= 1
        if not left[key]:
            del traced[key], rows
        yield DoseOperator(tables, spans, layers, len(points), spots.n_spots, scenario, cutoff)


def _check_positions(patient: Patient, spots: Spots) -> None:
    """Raise where a beam does not say how a patient lies who does not lie head first supine; tell where it says otherwise than the CT."""
    for number, beam in enumerate(spots.beams):
        if beam.position is None and patient.position != "HFS":
            raise InputError(
                f"beam {number} does not say how the patient lies, who lies {patient.position} in the CT: give it that position, as "
                f"place_spots does, or Beam(..., position='{patient.position}')"
            )
        if beam.lies != patient.position:
            warnings.warn(
                f"beam {number} is for a patient who lies {beam.lies}, the CT's lies {patient.position}: the beam's counts for its angles; "
                "set position = '...' in [patient] where the CT is wrong",
                PhysicsWarning,
                stacklevel=2,
            )
