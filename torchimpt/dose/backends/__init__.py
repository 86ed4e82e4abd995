"""Back-ends of the pair kernel: each module has `add_dose` and `add_gradient` with the same arguments."""

from __future__ import annotations

from types import ModuleType

import torch

from torchimpt.checks import InputError, nearest

BACKENDS = ("auto", "numba", "torch")


def choose(name: str, device: torch.device) -> ModuleType:
    """The back-end of this name; `"auto"` is numba on the CPU and torch elsewhere. `"sub_spots"` reads other tables than the rest."""
    if name == "sub_spots":
        from torchimpt.dose.backends import sub_spots_cpu

        return sub_spots_cpu
    if name not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got '{name}'{nearest(name, BACKENDS)}")
    if name == "auto":
        name = "numba" if device.type == "cpu" else "torch"
    if name == "numba":
        if device.type != "cpu":
            raise InputError(f"the numba back-end runs on the CPU only, the dose is on {device}; use backend 'torch'")
        from torchimpt.dose.backends import numba_cpu

        return numba_cpu
    from torchimpt.dose.backends import torch_any

    return torch_any
