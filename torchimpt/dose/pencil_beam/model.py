"""The default dose model: each voxel sees a spot at the water-equivalent depth along the voxel's own ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType

import numpy as np
import torch

from torchimpt.checks import InputError, nearest
from torchimpt.dose.gpu import check_triton, runs_triton
from torchimpt.dose.model import DeviceRows, SpotRows, Surroundings
from torchimpt.dose.pencil_beam import entries, numba_cpu, torch_any, triton_gpu
from torchimpt.dose.pencil_beam.dense import dense_dose
from torchimpt.dose.pencil_beam.order import run_order
from torchimpt.dose.pencil_beam.tables import PairTables, tabulate
from torchimpt.dose.rows import BeamRows
from torchimpt.machine import LayerTables

KERNELS: dict[str, ModuleType] = {"numba": numba_cpu, "torch": torch_any, "triton": triton_gpu}
"""Back-ends of the pair kernel: each module has `add_dose` and `add_gradient` with the same arguments."""

BACKENDS = ("auto", *KERNELS)


def kernel(backend: str, device: torch.device) -> ModuleType:
    """The back-end of this name; `"auto"` is numba on the CPU, triton on a GPU where it is installed, and torch elsewhere."""
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got '{backend}'{nearest(backend, BACKENDS)}")
    if backend == "numba" and device.type != "cpu":
        raise InputError(f"the numba back-end runs on the CPU only, the dose is on {device}; use backend 'torch'")
    if backend == "triton":
        check_triton(device)
    if backend == "auto":
        backend = "numba" if device.type == "cpu" else "triton" if runs_triton(device) else "torch"
    return KERNELS[backend]


@dataclass(frozen=True)
class PencilBeamTables(PairTables):
    """`PairTables` with the kernels that read them; `torchimpt.dose.model.Tables` says what each method does."""

    backend: str = "auto"

    @property
    def entries(self) -> PairEntries:
        """The matrix entries."""
        return PairEntries(self)

    @property
    def together(self) -> Callable[[Sequence[PairTables]], triton_gpu.Batch] | None:
        """Several scenarios at once: on a GPU, which one scenario does not fill; None where they are computed one after the other."""
        return triton_gpu.Batch if kernel(self.backend, self.device) is triton_gpu else None

    @cached_property
    def batch(self) -> triton_gpu.Batch:
        """This scenario alone."""
        return triton_gpu.Batch((self,))

    @property
    def add_dense(self) -> Callable[..., torch.Tensor]:
        """Every pair stored, for autograd."""
        return lambda dose, *spots: dense_dose(dose, self, *spots)

    def add_dose(self, dose: torch.Tensor, layer: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, cutoff: float) -> None:
        """Add the beam's dose."""
        kernel(self.backend, weight.device).add_dose(dose, self, layer, position, weight, cutoff)

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
        """Add the gradients for weight, x and y."""
        kernel(self.backend, weight.device).add_gradient(gradient, residual, self, layer, position, weight, cutoff, move)

    def squared(self) -> PencilBeamTables:
        """About `sum_k phi_k^2` in the place of `phi`: the square of a Gaussian is one of twice the fall-off.

        For scaling, not for dose: with a halo the components' mixed products are left out, which are small, and what the cut-off adds to
        the Gaussian is that of the squared Gaussian instead of being squared, 0.7 % of it at 4 sigmas.
        """
        return replace(self, amplitude=self.amplitude**2, falloff=2.0 * self.falloff, sigma=self.sigma / 2.0**0.5)

    def spot_sigma(self) -> torch.Tensor:
        """Sigma along x of the first component at the dose voxel that gets the most dose from a spot of the layer."""
        peak = self.amplitude[0].argmax(dim=1, keepdim=True)
        return (0.5 / self.falloff[0].gather(1, peak)[:, 0].double()).sqrt()


@dataclass(frozen=True)
class PairEntries:
    """The matrix entries of one beam's tables."""

    tables: PencilBeamTables

    @property
    def on_device(self) -> Callable[[torch.Tensor, torch.Tensor, float], DeviceRows] | None:
        """All entries, found on the GPU; None elsewhere."""
        return self._on_device if self.tables.together is not None else None

    def _on_device(self, layer: torch.Tensor, position: torch.Tensor, cutoff: float) -> DeviceRows:
        return DeviceRows(*self.tables.batch.entries(layer, position.to(layer.device), cutoff))

    def count(self, layer: torch.Tensor, position: torch.Tensor, cutoff: float) -> torch.Tensor:
        """Entries of each spot."""
        if self.tables.together is not None:
            return self.tables.batch.entries(layer, position.to(layer.device), cutoff, fill=False)[0].cpu()
        return entries.count(self.tables, layer, position, cutoff)

    def rows(self, layer: torch.Tensor, position: torch.Tensor, cutoff: float, n_voxels: int) -> list[SpotRows]:
        """All entries."""
        return entries.rows(self.tables, layer, position, cutoff, n_voxels)

    def order(self) -> np.ndarray:
        """The voxels in an order in which a spot's come in runs."""
        return run_order(self.tables)


@dataclass(frozen=True)
class PencilBeam:
    """Each voxel's own ray. `backend`: `"auto"`, `"numba"` (CPU), `"torch"` (any device) or `"triton"` (NVIDIA GPUs)."""

    backend: str = "auto"

    def tabulate(
        self, rows: BeamRows, layers: LayerTables, surroundings: Surroundings, dtype: torch.dtype, device: torch.device
    ) -> PencilBeamTables:
        """Tables of one beam in one scenario."""
        kernel(self.backend, device)
        pairs = tabulate(rows, layers, surroundings.range_scale, dtype, device)
        return PencilBeamTables(**vars(pairs), backend=self.backend)
