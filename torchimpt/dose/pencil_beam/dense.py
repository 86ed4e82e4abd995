"""The same dose in plain torch with every pair stored, for autograd to differentiate: the oracle of the hand-derived gradient."""

from __future__ import annotations

import torch

from torchimpt.dose.cutoff import cut
from torchimpt.dose.pencil_beam.kernel import pair_dose
from torchimpt.dose.pencil_beam.tables import PairTables


def dense_dose(
    dose: torch.Tensor, tables: PairTables, layer: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, cutoff: float
) -> torch.Tensor:
    """`dose` `(n_voxels,)` plus one beam's, from dense `(spots, voxels)` pairs, layer by layer.

    Memory grows with spots times voxels (several tensors of that size stay for backward): for small problems and comparisons.
    """
    for index in layer.unique().tolist():
        spots = (layer == index).nonzero().flatten()
        dx = tables.p - position[spots, 0, None]
        dy = tables.q - position[spots, 1, None]
        for k in range(tables.amplitude.shape[0]):
            phi = pair_dose(dx, dy, tables.ratio_of(k, index), tables.amplitude[k, index], tables.falloff[k, index], cut(cutoff))
            dose = dose.index_add(0, tables.order, weight[spots] @ phi)
    return dose
