"""The dose of one scenario as an operator of spot positions and weights: matrix-free, with its hand-derived gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from torchimpt.checks import InputError
from torchimpt.dose import backends
from torchimpt.dose.rows import PairTables, beam_rows, tabulate
from torchimpt.dose.sub_spots import RayTables, trace_rays
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.physics.stopping import relative_stopping_power
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots import Spots

DEFAULT_CUTOFF = 4.0
"""Lateral cut-off, in sigmas of each component: a Gaussian keeps all but exp(-8) = 0.03 % of itself."""


@dataclass(frozen=True)
class DoseOperator:
    """Dose of every spot at the dose voxels in one scenario, without a stored pair.

        D_v = sum_s w_s phi(v, s)

    Attributes
    ----------
    tables
        One beam's tables each.
    spans
        Per beam, `(first spot, end spot)` in the spots' order.
    layers
        Per beam, `(n_spots of the beam,)`: each spot's layer, counted from the beam's first.
    n_voxels, n_spots
        Sizes of the dose vector and of the weight vector.
    scenario
        What was tabulated.
    cutoff
        Lateral cut-off in sigmas.
    backend
        `"auto"`, `"numba"` or `"torch"`; `"sub_spots"` for tables of rays.
    """

    tables: tuple[PairTables, ...] | tuple[RayTables, ...]
    spans: tuple[tuple[int, int], ...]
    layers: tuple[torch.Tensor, ...]
    n_voxels: int
    n_spots: int
    scenario: Scenario
    cutoff: float
    backend: str = "auto"

    @property
    def n_bytes(self) -> int:
        """Memory that the tables take."""
        return sum(t.n_bytes for t in self.tables)

    def dose(self, position: torch.Tensor, weight: torch.Tensor, cutoff: float | None = None) -> torch.Tensor:
        """Dose `(n_voxels,)`, Gy, of spots at `position` `(n_spots, 2)` with `weight` `(n_spots,)`; spots of weight zero cost nothing."""
        backend = backends.choose(self.backend, weight.device)
        position, weight = position.detach(), weight.detach()
        dose = torch.zeros(self.n_voxels, dtype=weight.dtype, device=weight.device)
        for tables, layer, (begin, end) in zip(self.tables, self.layers, self.spans, strict=True):
            if end > begin and tables.p.numel():
                backend.add_dose(dose, tables, layer, position[begin:end], weight[begin:end], cutoff or self.cutoff)
        return dose

    def gradient(
        self, residual: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, move: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gradient of F for `residual = dF/dD` `(n_voxels,)`, weights and positions in one pass.

            dF/dw_s = sum_v r_v phi(v, s),   dF/dx_s = w_s sum_v r_v dphi/dx(v, s)

        Returns
        -------
        `(n_spots,)` for the weights and `(n_spots, 2)` for the positions; None for the latter when not `move`.
        """
        backend = backends.choose(self.backend, weight.device)
        residual, position, weight = residual.detach().contiguous(), position.detach(), weight.detach()
        gradient = torch.zeros((3, self.n_spots), dtype=weight.dtype, device=weight.device)
        for tables, layer, (begin, end) in zip(self.tables, self.layers, self.spans, strict=True):
            if end > begin and tables.p.numel():
                mine = torch.zeros((3, end - begin), dtype=weight.dtype, device=weight.device)
                backend.add_gradient(mine, residual, tables, layer, position[begin:end], weight[begin:end], self.cutoff, move)
                gradient[:, begin:end] = mine
        return gradient[0], gradient[1:].T if move else None

    def subset(self, index: torch.Tensor) -> DoseOperator:
        """The operator of the spots `index` `(n_kept,)`, ascending; the tables are shared, those of layers without spots too."""
        if index.numel() == self.n_spots:
            return self
        edges = torch.searchsorted(index, torch.tensor(self.spans, device=index.device).flatten()).view(-1, 2).tolist()
        layers = tuple(layer[index[i:j] - begin] for layer, (begin, _), (i, j) in zip(self.layers, self.spans, edges, strict=True))
        return replace(self, spans=tuple(map(tuple, edges)), layers=layers, n_spots=index.numel())

    def spot_sigma(self) -> torch.Tensor:
        """Sigma of each spot's first component where it gives the most dose, about its peak, `(n_spots,)`, mm in the isocentre plane.

        Among the dose voxels; 1 mm where the spot's beam reaches none.
        """
        sigma = torch.ones(self.n_spots, dtype=torch.float64)
        for tables, layer, (begin, end) in zip(self.tables, self.layers, self.spans, strict=True):
            if not tables.p.numel():
                continue
            peak = tables.amplitude[0].argmax(dim=1, keepdim=True)
            sigma[begin:end] = (0.5 / tables.falloff[0].gather(1, peak)[:, 0].double()).sqrt().cpu()[layer.cpu()]
        return sigma

    def squared(self) -> DoseOperator:
        """The operator with `sum_k phi_k^2` in the place of `phi`: its gradient for a residual `c` is the diagonal of `A' diag(c) A`.

        The square of a Gaussian is one of twice the fall-off; the cut-off radius stays. With a halo the components' mixed products
        are left out, which are small: for scaling, not for dose.
        """
        narrow = 2.0**0.5
        tables = tuple(replace(t, amplitude=t.amplitude**2, falloff=2.0 * t.falloff, sigma=t.sigma / narrow) for t in self.tables)
        return replace(self, tables=tables, cutoff=self.cutoff * narrow)

    def discarded_fraction(self, position: torch.Tensor, weight: torch.Tensor, wide: float = 8.0) -> float:
        """Share of the integral dose that the cut-off discards: against a cut-off of `wide` sigmas, which leaves out exp(-32)."""
        kept, whole = (self.dose(position, weight, c).sum(dtype=torch.float64) for c in (self.cutoff, max(wide, self.cutoff)))
        return float(1.0 - kept / whole) if whole > 0 else 0.0


def dose_operators(
    patient: Patient,
    machine: Machine,
    spots: Spots,
    voxels: torch.Tensor,
    scenarios: Sequence[Scenario] = (NOMINAL,),
    *,
    cutoff: float = DEFAULT_CUTOFF,
    rbe: float = 1.1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backend: str = "auto",
    sub_spots: bool = False,
) -> list[DoseOperator]:
    """One operator per scenario, for the beams and layers of `spots`. Scenarios with one setup shift share their ray tracing.

    Parameters
    ----------
    patient
        CT and ROIs on the dose grid.
    machine
        Beam model.
    spots
        Read for its beams and layers, not for positions or weights.
    voxels
        Flat grid indices `(n_voxels,)` that the dose vector stands for.
    scenarios
        Setup shifts and range scales.
    cutoff
        Lateral cut-off in sigmas.
    rbe
        Constant factor on physical dose.
    dtype, device, backend
        Of the tables and the products.
    sub_spots
        Whether each spot's protons are followed along many rays of their own (`torchimpt.dose.sub_spots`): closer to Monte Carlo behind
        lateral density steps, several times slower, matrix-free and on the CPU only.
    """
    if sub_spots:
        if backend != "auto" or torch.device(device).type != "cpu":
            raise InputError(f"sub_spots have a back-end of their own, on the CPU; got '{backend}' on {device}, use 'auto' on 'cpu'")
        backend = "sub_spots"
    if not 1.0 <= cutoff <= 12.0:
        raise InputError(f"cutoff_sigma must lie between 1 and 12 sigmas, got {cutoff}")
    if not 0 < rbe <= 10:
        raise InputError(f"rbe must be a positive factor near 1, got {rbe}")
    rsp = relative_stopping_power(patient, machine)
    voxels = voxels.cpu()
    layer_beam, layer_energy, spot_layer = spots.layer_beam.cpu(), spots.layer_energy.cpu(), spots.layer.cpu()
    first_layer = torch.searchsorted(layer_beam, torch.arange(len(spots.beams) + 1))
    first_spot = torch.searchsorted(spot_layer, first_layer).tolist()
    used = [b for b in range(len(spots.beams)) if first_spot[b + 1] > first_spot[b]]
    spans = tuple((first_spot[b], first_spot[b + 1]) for b in used)
    layers = tuple((spot_layer[i:j] - first_layer[b]).to(device) for b, (i, j) in zip(used, spans, strict=True))
    curves = {b: machine.layers(layer_energy[first_layer[b] : first_layer[b + 1]]) for b in used}
    by_shift: dict[tuple, dict] = {}
    operators = []
    for scenario in scenarios:
        if scenario.shift not in by_shift:
            by_shift[scenario.shift] = {b: beam_rows(rsp, patient.grid, voxels, spots.beams[b], machine.sad, scenario.shift) for b in used}
        rows = by_shift[scenario.shift]
        if sub_spots:
            tables = tuple(
                trace_rays(
                    rows[b], curves[b], rsp, patient.grid, spots.beams[b], machine.sad, scenario.shift, scenario.range_scale, rbe, dtype
                )
                for b in used
            )
        else:
            tables = tuple(tabulate(rows[b], curves[b], scenario.range_scale, rbe, dtype, device) for b in used)
        operators.append(DoseOperator(tables, spans, layers, len(voxels), spots.n_spots, scenario, cutoff, backend))
    return operators
