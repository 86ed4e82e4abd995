"""What GPUs are asked for: whether kernels made for them can run here, and the one place where a Triton kernel is started.

Triton compiles for NVIDIA GPUs. With `TRITON_INTERPRET=1` in the environment before its kernels are imported, it computes them on the CPU
in Python instead, thousands of times slower: that is how the kernels are tested where there is no GPU.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from typing import Any

import torch

from torchimpt.checks import InputError

GPU = torch.device("cuda")
"""The GPU that is computed on: torch's current one, which `CUDA_VISIBLE_DEVICES` chooses."""


LEAST_TRITON = (3, 3)
"""The kernels compile from there on."""


def interpreted() -> bool:
    """Whether Triton's kernels are computed on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def has_triton() -> bool:
    """Whether Triton is installed, `LEAST_TRITON` or later; it comes with torch's CUDA builds."""
    try:
        found = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in found.split(".")[:2]) >= LEAST_TRITON


def has_gpu() -> bool:
    """Whether torch sees a GPU that Triton compiles for."""
    return torch.cuda.is_available()


def check_triton(device: torch.device | str) -> None:
    """Raise where Triton's kernels cannot run on the device."""
    if not has_triton():
        raise InputError("the triton back-end needs the package triton, 3.3 or later, which is not installed: pip install 'torchimpt[gpu]'")
    if torch.device(device).type == "cpu" and not interpreted():
        raise InputError(
            "the triton back-end runs on NVIDIA GPUs, the dose is on the CPU; use backend 'numba', or for tests set TRITON_INTERPRET=1"
        )


def runs_triton(device: torch.device | str) -> bool:
    """Whether Triton's kernels are what computes on the device: on a GPU, where Triton is installed."""
    return torch.device(device).type == "cuda" and has_triton()


def launch(kernel: Any, programs: int, *arguments: Any, **sizes: Any) -> None:
    """Start a Triton kernel of so many programs, on the device of its first argument; nothing where there are none.

    Triton launches on the current device, which need not be the one where the tensors are.
    """
    if programs == 0:
        return
    device = arguments[0].device
    if device.type != "cuda":
        kernel[(programs,)](*arguments, **sizes)
        return
    with torch.cuda.device(device):
        kernel[(programs,)](*arguments, **sizes)


def device_product(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`M x` of torch's CSR by the kernel of `torchimpt.dose.triton_csr`: values of 16 bits, too, and the same sums in every run."""
    products = importlib.import_module("torchimpt.dose.triton_csr")
    return products.product(matrix.crow_indices(), matrix.col_indices(), matrix.values(), x)


def addresses(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    """Where tensors begin `(n_rows, n_columns)`, int64, on their device: kernels read tables of many scenarios where they lie."""
    return torch.tensor([[tensor.data_ptr() for tensor in row] for row in rows], dtype=torch.int64, device=rows[0][0].device)
