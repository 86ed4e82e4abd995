"""What the dose kernel reads of a machine: one row of uniformly sampled curves per energy layer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class LayerTables:
    """Depth dose, lateral spread and optics of energy layers, tabulated for linear interpolation.

    Sample j of layer l lies at the depth `j depth_step[l]`; beyond the last sample the depth dose is zero, and the lateral curves
    keep their last value. The total variance of component k at a voxel is `optics_variance(Zg) + variance[k](WEPL)` along the beam's x, and
    along its y the same with `optics_variance_y`; with a range shifter, `drift[k, l, 0] D + drift[k, l, 1] D^2` more, `D = face - Zg`.

    Attributes
    ----------
    energy
        Nominal energy `(n_layers,)`, MeV.
    r80, peak, width80
        `(n_layers,)`, mm of water: distal 80 % depth, depth of the maximum, width of the peak at 80 % of it.
    depth_step
        `(n_layers,)`, mm of water.
    idd
        Depth dose `(n_layers, n_samples)`, Gy mm^2 per 10^6 protons. The last sample is zero.
    variance
        Lateral variance that the medium adds, `(n_components, n_layers, n_samples)`, mm^2, never negative.
    fraction
        Share of each component `(n_components, n_layers, n_samples)`; sums to one over the components.
    optics_start, optics_step
        The optics' grid in Zg, mm (towards the source, zero at the isocentre).
    optics_variance
        In-air variance `(n_layers, n_optics)`, mm^2, at `Zg = optics_start + j optics_step`; the end values hold beyond the ends.
    optics_variance_y
        That along the beam's y; None where spots are round.
    drift
        `(n_components, n_layers, 2)`, mm and 1: how the variance grows with the distance behind a range shifter; None where there is none.
    face
        Where the shifter's downstream face is, `Zg`, mm.
    """

    energy: torch.Tensor
    r80: torch.Tensor
    peak: torch.Tensor
    width80: torch.Tensor
    depth_step: torch.Tensor
    idd: torch.Tensor
    variance: torch.Tensor
    fraction: torch.Tensor
    optics_start: float
    optics_step: float
    optics_variance: torch.Tensor
    optics_variance_y: torch.Tensor | None = None
    drift: torch.Tensor | None = None
    face: float = 0.0

    @property
    def round(self) -> bool:
        """Whether spots are as wide along the beam's y as along its x."""
        return self.optics_variance_y is None

    @property
    def n_layers(self) -> int:
        """Number of energy layers."""
        return self.energy.shape[0]

    @property
    def n_components(self) -> int:
        """Number of lateral Gaussians: 1, 2 with a nuclear halo, or as many as the machine's curves have."""
        return self.variance.shape[0]

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LayerTables:
        """The same tables in another dtype, on another device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(dtype=dtype, device=device) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        return LayerTables(**moved)
