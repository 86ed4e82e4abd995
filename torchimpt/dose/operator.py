"""The dose of one scenario as an operator of spot positions and weights: matrix-free, with its hand-derived gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from torchimpt.checks import InputError
from torchimpt.dose.model import Partials, Tables
from torchimpt.scenarios import Scenario
from torchimpt.sums import total


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
    """

    tables: tuple[Tables, ...]
    spans: tuple[tuple[int, int], ...]
    layers: tuple[torch.Tensor, ...]
    n_voxels: int
    n_spots: int
    scenario: Scenario
    cutoff: float

    @property
    def n_bytes(self) -> int:
        """Memory that the tables take."""
        return sum(t.n_bytes for t in self.tables)

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.tables[0].device if self.tables else torch.device("cpu")

    def to(self, device: torch.device) -> DoseOperator:
        """The same operator on another device."""
        return replace(self, tables=tuple(t.to(device) for t in self.tables), layers=tuple(layer.to(device) for layer in self.layers))

    def beams(self) -> Iterator[tuple[Tables, torch.Tensor, int, int]]:
        """Of each beam that gives dose to any voxel: its tables, its spots' layers, its first spot and the end of its spots."""
        for tables, layer, (begin, end) in zip(self.tables, self.layers, self.spans, strict=True):
            if end > begin and not tables.empty:
                yield tables, layer, begin, end

    def dose(self, position: torch.Tensor, weight: torch.Tensor, cutoff: float | None = None) -> torch.Tensor:
        """Dose `(n_voxels,)`, Gy, of spots at `position` `(n_spots, 2)` with `weight` `(n_spots,)`; spots of weight zero cost nothing.

        Where the weights are, which need not be where the tables are.
        """
        home = weight.device
        position, weight = (t.detach().to(self.device) for t in (position, weight))
        dose = torch.zeros(self.n_voxels, dtype=weight.dtype, device=weight.device)
        for tables, layer, begin, end in self.beams():
            tables.add_dose(dose, layer, position[begin:end], weight[begin:end], cutoff or self.cutoff)
        return dose.to(home)

    def dense_dose(self, position: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The same with every pair stored, for autograd to differentiate: for small problems and comparisons."""
        dose = torch.zeros(self.n_voxels, dtype=weight.dtype, device=weight.device)
        for tables, layer, begin, end in self.beams():
            if tables.add_dense is None:
                raise InputError("this dose model has the analytic gradient only; take gradient 'analytic'")
            dose = tables.add_dense(dose, layer, position[begin:end], weight[begin:end], self.cutoff)
        return dose

    def gradient(self, residual: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, move: bool = True) -> Partials:
        """Gradient of F for `residual = dF/dD` `(n_voxels,)`, weights and positions in one pass.

            dF/dw_s = sum_v r_v phi(v, s),   dF/dx_s = w_s sum_v r_v dphi/dx(v, s)

        Positions are left out unless `move`. Where the weights are, as in `dose`.
        """
        home = weight.device
        residual, position, weight = (t.detach().to(self.device) for t in (residual.contiguous(), position, weight))
        gradient = torch.zeros((3, self.n_spots), dtype=weight.dtype, device=weight.device)
        for tables, layer, begin, end in self.beams():
            mine = torch.zeros((3, end - begin), dtype=weight.dtype, device=weight.device)
            tables.add_gradient(mine, residual, layer, position[begin:end], weight[begin:end], self.cutoff, move)
            gradient[:, begin:end] = mine
        gradient = gradient.to(home)
        return Partials(gradient[0], gradient[1:].T if move else None)

    def subset(self, index: torch.Tensor) -> DoseOperator:
        """The operator of the spots `index` `(n_kept,)`, ascending; the tables are shared, those of layers without spots too."""
        if index.numel() == self.n_spots:
            return self
        kept = index.to(self.device)
        edges = torch.searchsorted(index, torch.tensor(self.spans, device=index.device).flatten()).view(-1, 2).tolist()
        layers = tuple(layer[kept[i:j] - begin] for layer, (begin, _), (i, j) in zip(self.layers, self.spans, edges, strict=True))
        return replace(self, spans=tuple((i, j) for i, j in edges), layers=layers, n_spots=index.numel())

    def spot_sigma(self) -> torch.Tensor:
        """Sigma of each spot's first component where it gives the most dose, about its peak, `(n_spots,)`, mm in the isocentre plane.

        Among the dose voxels; 1 mm where the spot's beam reaches none.
        """
        sigma = torch.ones(self.n_spots, dtype=torch.float64)
        for tables, layer, begin, end in self.beams():
            sigma[begin:end] = tables.spot_sigma().cpu()[layer.cpu()]
        return sigma

    def squared(self) -> DoseOperator:
        """The operator with `phi^2` in the place of `phi`: its gradient for a residual `c` is the diagonal of `A' diag(c) A`."""
        tables = tuple(square for t in self.tables if (square := t.squared()) is not None)
        if len(tables) < len(self.tables):
            raise InputError("this dose model has no squares, which scale the optimizer; optimize with dose model 'pencil_beam'")
        return replace(self, tables=tables, cutoff=self.cutoff * 2.0**0.5)

    def discarded(self, position: torch.Tensor, weight: torch.Tensor, wide: float = 8.0) -> tuple[float, float]:
        """The integral dose that the cut-off leaves at other voxels than a cut-off of `wide` sigmas does, and all of it, twice each.

            sum_v |D_v - D_wide,v|,   2 sum_v D_wide,v

        The cut Gaussian keeps its integral, so that nothing is lost: at 4 sigmas 0.2 % of a spot lie elsewhere, a sigma or two from where
        they were, and in a plan's dose most of that evens out. Sums over several sets of voxels add up.
        """
        kept, whole = (self.dose(position, weight, c).double() for c in (self.cutoff, max(wide, self.cutoff)))
        return float(total((kept - whole).abs())), 2.0 * float(total(whole))

    def discarded_fraction(self, position: torch.Tensor, weight: torch.Tensor, wide: float = 8.0) -> float:
        """The quotient of `discarded`."""
        moved, integral = self.discarded(position, weight, wide)
        return moved / integral if integral > 0 else 0.0
