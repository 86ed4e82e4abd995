"""The sub-spot model: closer to Monte Carlo behind lateral steps, slower, on the CPU, without matrix entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from torchimpt.checks import InputError
from torchimpt.dose.model import Surroundings
from torchimpt.dose.rows import BeamRows
from torchimpt.dose.sub_spots import numba_cpu
from torchimpt.dose.sub_spots.tables import RayTables, trace_rays
from torchimpt.machine import LayerTables


@dataclass(frozen=True)
class SubSpotTables(RayTables):
    """`RayTables` with the kernels that read them; `torchimpt.dose.model.Tables` says what each method does."""

    entries = None
    add_dense = None

    def add_dose(self, dose: torch.Tensor, layer: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, cutoff: float) -> None:
        """Add the beam's dose."""
        numba_cpu.add_dose(dose, self, layer, position, weight, cutoff)

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
        """Add the gradients for weight, x and y; those for the positions cost nothing, so `move` changes nothing."""
        numba_cpu.add_gradient(gradient, residual, self, layer, position, weight, cutoff)

    def squared(self) -> None:
        """There is none."""
        return None

    def spot_sigma(self) -> torch.Tensor:
        """Bound on sigma of the first component, over all voxels of the layer."""
        return self.sigma[0].double()


@dataclass(frozen=True)
class SubSpots:
    """Many rays a spot."""

    backend: str = "auto"

    cpu_only: ClassVar[bool] = True

    def tabulate(
        self, rows: BeamRows, layers: LayerTables, surroundings: Surroundings, dtype: torch.dtype, device: torch.device
    ) -> SubSpotTables:
        """Tables of one beam in one scenario."""
        if self.backend != "auto" or device.type != "cpu":
            raise InputError(f"sub_spots have a back-end of their own, on the CPU; got '{self.backend}' on {device}, use 'auto' on 'cpu'")
        return SubSpotTables(**vars(trace_rays(rows, layers, surroundings, dtype)))
