"""The scenarios of one device: one after the other, or at once where the dose model's back-end can."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchimpt.dose.model import Batch, Partials
from torchimpt.dose.operator import DoseOperator


class Group:
    """Doses and gradient of some scenarios on their device.

    Parameters
    ----------
    operators
        One a scenario, of the same spots.
    """

    def __init__(self, operators: Sequence[DoseOperator]) -> None:
        self.operators = tuple(operators)
        self._batches = _batches(self.operators)

    def dose(self, position: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`D` `(n_scenarios, n_voxels)`, Gy."""
        if self._batches is None:
            return torch.stack([operator.dose(position, weight) for operator in self.operators])
        first, position, weight = self.operators[0], position.detach(), weight.detach()
        doses = weight.new_zeros((len(self.operators), first.n_voxels))
        for batch, layer, (i, j) in zip(self._batches, first.layers, first.spans, strict=True):
            if j > i:
                batch.add_dose(doses, layer, position[i:j], weight[i:j], first.cutoff)
        return doses

    def gradients(self, residual: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, move: bool) -> list[torch.Tensor]:
        """`(dF/dw, dF/dx, dF/dy)` `(3, n_spots)`, or `(1, n_spots)` unless `move`, for `residual` `(n_scenarios, n_voxels)`.

        Of each scenario, or at once their sum.
        """
        if self._batches is None:
            each = (operator.gradient(row, position, weight, move) for operator, row in zip(self.operators, residual, strict=True))
            return [rows_of(partials) for partials in each]
        first, residual = self.operators[0], residual.detach().contiguous()
        position, weight = position.detach(), weight.detach()
        gradient = weight.new_zeros((3, first.n_spots))
        for batch, layer, (i, j) in zip(self._batches, first.layers, first.spans, strict=True):
            if j > i:
                mine = weight.new_zeros((3, j - i))
                batch.add_gradient(mine, residual, layer, position[i:j], weight[i:j], first.cutoff, move)
                gradient[:, i:j] = mine
        return [gradient if move else gradient[:1]]


def rows_of(partials: Partials) -> torch.Tensor:
    """Partials as one tensor, `(3, n_spots)` or `(1, n_spots)`: what is summed."""
    weight = partials.weight.unsqueeze(0)
    return weight if partials.position is None else torch.cat((weight, partials.position.T))


def partials_of(rows: torch.Tensor) -> Partials:
    """And back."""
    return Partials(rows[0], rows[1:].T if len(rows) > 1 else None)


def _batches(operators: Sequence[DoseOperator]) -> list[Batch] | None:
    """Of each beam its tables in all scenarios; None where one scenario after the other is computed."""
    if not all(isinstance(operator, DoseOperator) and operator.tables for operator in operators):
        return None
    together = getattr(operators[0].tables[0], "together", None)
    if together is None:
        return None
    return [together(beam) for beam in zip(*(operator.tables for operator in operators), strict=True)]
