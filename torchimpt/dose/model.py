"""What a dose model must offer: tables of one beam in one scenario, with dose, gradient, and, where it can, matrix entries.

A model is added by a folder beside `pencil_beam/`, and a line in `torchimpt.dose.models`. Everything above, operators, scenarios, matrices
and plans, asks for no more than what stands here. Doses are physical, Gy per 10^6 protons: what biology or another quantity makes of them
is told by `torchimpt.quantities`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from torchimpt.dose.rows import BeamRows
from torchimpt.geometry import Beam, Grid
from torchimpt.machine import LayerTables

NO_MATRIX = (
    "this dose model has no influence matrix; take dose model 'pencil_beam', or compute matrix-free, [dose] engine = \"matrix_free\""
)


@dataclass(frozen=True)
class Surroundings:
    """What a beam goes through in a scenario, for models that trace rays of their own.

    Attributes
    ----------
    rsp, grid
        Relative stopping power `(z, y, x)`, and where it lies.
    beam, sad
        The field, and the distances of its virtual sources, mm.
    shift, range_scale
        The scenario's setup shift, LPS, mm, and factor on every WEPL.
    """

    rsp: torch.Tensor
    grid: Grid
    beam: Beam
    sad: tuple[float, float]
    shift: tuple[float, float, float]
    range_scale: float


class Partials(NamedTuple):
    """F's gradient by what each spot has; None where it was not asked for.

    Attributes
    ----------
    weight
        `dF/dw` `(n_spots,)`.
    position
        `dF/dx` `(n_spots, 2)`.
    """

    weight: torch.Tensor
    position: torch.Tensor | None


@dataclass(frozen=True)
class SpotRows:
    """Rows of `A^T`, a spot each: `counts` `(n_spots,)` entries a row, their voxels `columns`, ascending in a row, and `values`."""

    counts: np.ndarray
    columns: np.ndarray
    values: np.ndarray


class DeviceRows(NamedTuple):
    """The same on a GPU: `counts` int64, `columns` int32 in any order, `values`."""

    counts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor


class Entries(Protocol):
    """The matrix entries of one beam. Arguments are as in `Tables.add_dose`, on the CPU.

    A model that finds entries on a GPU has `on_device(layer, position, cutoff) -> DeviceRows`, too; it is None where it does not.
    """

    def count(self, layer: torch.Tensor, position: torch.Tensor, cutoff: float) -> torch.Tensor:
        """Entries of each spot `(n,)`, int64, to within a few."""
        ...

    def rows(self, layer: torch.Tensor, position: torch.Tensor, cutoff: float, n_voxels: int) -> list[SpotRows]:
        """All entries, in the spots' order, a chunk of spots each."""
        ...

    def order(self) -> np.ndarray:
        """All voxels that any spot may reach `(n,)`, int32, in an order in which those that one spot reaches come in runs."""
        ...


class Batch(Protocol):
    """One beam in several scenarios at once: `doses` and `residuals` are `(n_scenarios, n_voxels)`, all else as in `Tables`."""

    def add_dose(self, doses: torch.Tensor, layer: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, cutoff: float) -> None:
        """Add the beam's dose in every scenario."""
        ...

    def add_gradient(
        self,
        gradient: torch.Tensor,
        residuals: torch.Tensor,
        layer: torch.Tensor,
        position: torch.Tensor,
        weight: torch.Tensor,
        cutoff: float,
        move: bool,
    ) -> None:
        """Add the gradients, summed over the scenarios."""
        ...


class Tables(Protocol):
    """One beam in one scenario, tabulated; component k, layer l of this beam."""

    @property
    def n_bytes(self) -> int:
        """Memory that the tables take."""
        ...

    @property
    def empty(self) -> bool:
        """Whether no voxel gets dose from this beam."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the tables and of what they give."""
        ...

    @property
    def device(self) -> torch.device:
        """Where they are."""
        ...

    @property
    def entries(self) -> Entries | None:
        """The matrix entries; None for a model that has none."""
        ...

    @property
    def add_dense(self) -> Callable[..., torch.Tensor] | None:
        """As `add_dose`, with every pair stored for autograd to differentiate, returning the sum; None for a model that can't."""
        ...

    def to(self, device: torch.device) -> Tables:
        """The same tables on another device."""
        ...

    def add_dose(self, dose: torch.Tensor, layer: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, cutoff: float) -> None:
        """Add the beam's dose to `dose` `(n_voxels,)`.

        Parameters
        ----------
        layer
            `(n,)` int64, ascending: each spot's layer, counted from the beam's first.
        position, weight
            `(n, 2)` mm and `(n,)` 10^6 protons; spots of weight zero cost nothing.
        cutoff
            Lateral cut-off in sigmas.
        """
        ...

    def add_gradient(
        self,
        gradient: torch.Tensor,
        residual: torch.Tensor,
        layer: torch.Tensor,
        position: torch.Tensor,
        weight: torch.Tensor,
        cutoff: float,
        move: bool,
    ) -> None:
        """Add `(dF/dw, dF/dx, dF/dy)` `(3, n)` for `residual = dF/dD` `(n_voxels,)`; only the first row unless `move`."""
        ...

    def squared(self) -> Tables | None:
        """Tables of `phi^2`, whose cut-off is wider by the root of two; None for a model that has none."""
        ...

    def spot_sigma(self) -> torch.Tensor:
        """Sigma of each layer's spots about their peak `(n_layers,)`, float64, mm in the isocentre plane."""
        ...


class DoseModel(Protocol):
    """A way to compute dose."""

    def tabulate(self, rows: BeamRows, layers: LayerTables, surroundings: Surroundings, dtype: torch.dtype, device: torch.device) -> Tables:
        """Tables of one beam in one scenario.

        Parameters
        ----------
        rows
            The beam's voxels, from `beam_rows`.
        layers
            This beam's energy layers, float64.
        surroundings
            What the beam goes through.
        dtype, device
            Of the tables and of all that they compute; an `InputError` where the model has no arithmetic for them.
        """
        ...
