"""The same dose in plain torch with every pair stored, for autograd to differentiate: the oracle of the hand-derived gradient."""

from __future__ import annotations

import torch

from torchimpt.dose.kernel import pair_dose
from torchimpt.dose.operator import DoseOperator


def dense_dose(operator: DoseOperator, position: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Dose `(n_voxels,)` from dense `(spots, voxels)` pairs, layer by layer.

    Memory grows with spots times voxels (several tensors of that size stay for backward): for small problems and comparisons.
    """
    dose = torch.zeros(operator.n_voxels, dtype=weight.dtype, device=weight.device)
    for tables, layer, (begin, _) in zip(operator.tables, operator.layers, operator.spans, strict=True):
        for index in layer.unique().tolist():
            spots = begin + (layer == index).nonzero().flatten()
            dx = tables.p - position[spots, 0, None]
            dy = tables.q - position[spots, 1, None]
            for k in range(tables.amplitude.shape[0]):
                phi = pair_dose(dx, dy, tables.ratio, tables.amplitude[k, index], tables.falloff[k, index], 0.5 * operator.cutoff**2)
                dose = dose.index_add(0, tables.order, weight[spots] @ phi)
    return dose
