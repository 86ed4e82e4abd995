"""The pair kernel on NVIDIA GPUs: what Triton's kernels need of a beam's tables, in one scenario or in several at once."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch

from torchimpt.dose.cutoff import cut
from torchimpt.dose.gpu import addresses, check_triton, interpreted, launch
from torchimpt.dose.pencil_beam.tables import PairTables
from torchimpt.dose.rows import CELL_WIDTH, ROW_HEIGHT

BAND, CELL = 8.0, 4.0
"""Height and width of the cells that spots are sorted into, mm: a spot's reach is several of them."""

TILE, SPOTS = 128, 8
"""Voxels of a program of the dose kernel, and spots that it takes at once."""

ROWS, RUN = 8, 32
"""Rows, and voxels of each, that a program of the gradient kernel takes at once."""

RUN_ENTRIES = 64
"""Voxels that a program of the entries' kernel takes at once."""


def _wide(size: int) -> int:
    """A tile's size; the interpreter's time goes by operations, not by elements."""
    return 8 * size if interpreted() else size


class Batch:
    """One beam's tables in several scenarios, as the kernels take them.

    Parameters
    ----------
    tables
        Of the same layers and components, on one device; the doses and residuals that are asked for have their order.
    """

    def __init__(self, tables: Sequence[PairTables]) -> None:
        first = tables[0]
        check_triton(first.device)
        self.tables, self.device, self.dtype = tuple(tables), first.device, first.dtype
        self.n_components, self.n_layers = first.amplitude.shape[:2]
        # what the kernels read stays alive with `tables`
        self._addresses = addresses([[t.order, t.cells, t.p, t.q, t.ratio, t.amplitude, t.falloff] for t in tables])
        sizes = [[t.p.numel(), *_steps(t.ratio), *t.cells.shape] for t in tables]
        self._sizes = torch.tensor(sizes, dtype=torch.int64, device=self.device)
        self._frame = self._numbers([[t.first, t.left, t.ratio_min] for t in tables])
        self._corner = self._numbers([first.left, first.first])
        self._bands = max(1, -int(-len(first.cells) * ROW_HEIGHT // BAND))
        self._cells = max(1, -int(-(first.cells.shape[1] - 1) * CELL_WIDTH // CELL))
        self._tile = _wide(TILE)
        self._tiles = _tiles(tables, self._tile).to(self.device)
        self.at = lru_cache(maxsize=4)(self._at)

    def _numbers(self, values: list) -> torch.Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.device)

    def _at(self, cutoff: float) -> tuple[torch.Tensor, torch.Tensor]:
        """`reach` and `shape` of the kernels at so many sigmas."""
        reach = torch.stack([torch.nan_to_num(cutoff * t.sigma, posinf=0.0) for t in self.tables])
        return reach.to(self.device, self.dtype), self._numbers(list(cut(cutoff)))

    def add_dose(self, doses: torch.Tensor, layer: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, cutoff: float) -> None:
        """Add the beam's dose in every scenario to `doses` `(n_scenarios, n_voxels)`, contiguous; `layer` counts from the beam's first."""
        corner, n = self._corner, self.n_layers * self._bands * self._cells
        cell = ((position - corner) / position.new_tensor([CELL, BAND])).floor()
        place = [cell[:, i].clamp(0, count - 1).long() for i, count in enumerate((self._cells, self._bands))]
        # spots of weight zero come last, in no cell
        key = torch.where(weight != 0, (layer * self._bands + place[1]) * self._cells + place[0], n)
        key, order = key.sort(stable=True)
        start = torch.searchsorted(key, torch.arange(n + 1, device=key.device))
        x, y = position[order].T.contiguous()
        launch(
            _kernels().dose_kernel, len(self._tiles), doses, self._addresses, self._sizes, self._frame, *self.at(cutoff), self._tiles, x, y,
            weight[order], start, corner, doses.shape[1], self.n_components, self.n_layers, self._bands, self._cells,
            BAND=BAND, CELL=CELL, VOXELS=self._tile, SPOTS=SPOTS,
        )  # fmt: skip

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
        """Add `(dF/dw, dF/dx, dF/dy)` `(3, n)`, over all scenarios, for `residuals` `(n_scenarios, n_voxels)`; both contiguous."""
        x, y = position.T.contiguous()
        launch(
            _kernels().gradient_kernel, len(layer), gradient, residuals, self._addresses, self._sizes, self._frame, *self.at(cutoff),
            layer, x, y, weight.contiguous(), len(layer), residuals.shape[1], len(self.tables), self.n_components, self.n_layers,
            MOVE=move, HEIGHT=ROW_HEIGHT, WIDTH=CELL_WIDTH, ROWS=ROWS, VOXELS=_wide(RUN), num_warps=2,
        )  # fmt: skip

    def entries(self, layer: torch.Tensor, position: torch.Tensor, cutoff: float, fill: bool = True) -> tuple[torch.Tensor, ...]:
        """Of the first scenario: entries of each spot `(n,)`, int64; with `fill` their voxels, int32, and values, spot after spot."""
        reach, shape = self.at(cutoff)
        x, y = position.to(self.dtype).T.contiguous()
        counts, nowhere = torch.zeros_like(layer), torch.zeros_like(layer)
        found = torch.empty(0, dtype=self.dtype, device=self.device), torch.empty(0, dtype=torch.int32, device=self.device)

        def run(filled: bool, room: torch.Tensor) -> None:
            launch(
                _kernels().entries_kernel, len(layer), *found, counts, room, self._addresses, self._sizes, self._frame, reach[0].amax(0),
                shape, layer, x, y, self.n_components, self.n_layers,
                FILL=filled, HEIGHT=ROW_HEIGHT, WIDTH=CELL_WIDTH, VOXELS=_wide(RUN_ENTRIES), num_warps=2,
            )  # fmt: skip

        run(False, nowhere)
        if not fill:
            return (counts,)
        total = int(counts.sum())
        found = tuple(t.new_empty(total) for t in found)  # type: ignore[assignment]
        run(True, counts.cumsum(0) - counts)
        return counts, found[1], found[0]


def _kernels() -> Any:
    """The kernels, imported where they are needed: Triton need not be installed."""
    return importlib.import_module("torchimpt.dose.pencil_beam.triton_kernels")


def _steps(ratio: torch.Tensor) -> tuple[int, int]:
    """From one component's ratios to the next one's, and from one layer's; zero where all have the same."""
    by_component, by_layer, _ = ratio.stride()
    return by_component * (ratio.shape[0] > 1), by_layer * (ratio.shape[1] > 1)


def _tiles(tables: Sequence[PairTables], size: int) -> torch.Tensor:
    """Scenario, begin and end of each tile `(n_tiles, 3)`, int32: no tile has voxels of two rows."""
    tiles = []
    for scenario, table in enumerate(tables):
        start = table.row_start.cpu()
        count = (start.diff() + size - 1) // size
        row = torch.repeat_interleave(torch.arange(len(count)), count)
        begin = start[row] + size * (torch.arange(len(row)) - (count.cumsum(0) - count)[row])
        tiles.append(torch.stack((torch.full_like(row, scenario), begin, torch.minimum(begin + size, start[row + 1])), dim=1))
    return torch.cat(tiles).int()


class Prepared(Protocol):
    """Tables that keep what the kernels take of them."""

    @property
    def batch(self) -> Batch:
        """Their scenario alone."""
        ...


def add_dose(
    dose: torch.Tensor, tables: Prepared, layer: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, cutoff: float
) -> None:
    """Add one beam's dose in one scenario to `dose` `(n_voxels,)`; `layer` `(S,)` counts from the beam's first layer, ascending."""
    tables.batch.add_dose(dose[None], layer, position, weight, cutoff)


def add_gradient(
    gradient: torch.Tensor,
    residual: torch.Tensor,
    tables: Prepared,
    layer: torch.Tensor,
    position: torch.Tensor,
    weight: torch.Tensor,
    cutoff: float,
    move: bool,
) -> None:
    """Add `(dF/dw, dF/dx, dF/dy)` `(3, S)` of one beam in one scenario; only the first row unless `move`."""
    tables.batch.add_gradient(gradient, residual[None], layer, position, weight, cutoff, move)
