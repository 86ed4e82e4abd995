"""LETd of energy layers, on the depths of their tables."""

from __future__ import annotations

import numpy as np
import torch

from torchimpt.machine.curves import ScaledCurves
from torchimpt.machine.tables import LayerTables
from torchimpt.physics.letd import letd_curve, straggling


def layer_letd(curves: ScaledCurves, layers: LayerTables) -> torch.Tensor:
    """LETd `(n_layers, n_samples)`, keV/um, at the depths of the layers' tables.

    Between two tabulated energies a file's curves are blended linearly in energy at the same scaled depth, as depth doses are. Where the
    file has none, `letd_curve` takes each layer's own range and the straggling that its depth dose shows.
    """
    depth = layers.depth_step[:, None] * torch.arange(layers.idd.shape[1], dtype=torch.float64)
    if curves.letd is None:
        return torch.stack([letd_curve(z, float(r), straggling(z, dose)) for z, r, dose in zip(depth, layers.r80, layers.idd, strict=True)])
    table, energies = curves.letd.numpy(), curves.energy.numpy()
    t = curves.step * np.arange(table.shape[1])
    found = []
    for energy, z, mean_range in zip(layers.energy.tolist(), depth.numpy(), layers.r80.tolist(), strict=True):
        i = min(max(int(np.searchsorted(energies, energy, side="right")) - 1, 0), max(len(energies) - 2, 0))
        j = min(i + 1, len(energies) - 1)
        share = (energy - energies[i]) / (energies[j] - energies[i]) if j > i else 0.0
        found.append(np.interp(z / mean_range, t, (1.0 - share) * table[i] + share * table[j]))
    return torch.from_numpy(np.stack(found))
