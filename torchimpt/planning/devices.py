"""Where a plan is computed: on the CPU, on a GPU, or on both at once, each with scenarios of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch

from torchimpt.case import Case
from torchimpt.checks import InputError
from torchimpt.dose import gpu
from torchimpt.dose.device_matrix import SORT_BYTES
from torchimpt.dose.influence import entry_counts, matrix_bytes
from torchimpt.dose.operator import DoseOperator
from torchimpt.dose.shares import Place, Placement
from torchimpt.memory import available_memory

log = logging.getLogger(__name__)

CPU = torch.device("cpu")

GPU_SHARE = 0.8
"""Of a GPU's free memory, what tables and matrices may take unless a case says otherwise; doses, sorting and the driver take the rest."""


def resolve(device: str, case: Case) -> tuple[Place, ...]:
    """The places that scenarios are given to: `"auto"` takes a GPU where a back-end made for it is there, the CPU for what does not fit.

    Parameters
    ----------
    device
        `"cpu"`, `"cuda"` for a GPU alone, or `"auto"`.
    case
        For its `[dose] gpu_memory_gb`, and because a gradient by autograd is computed in one place.
    """
    if device == "cpu":
        return (Place(CPU),)
    if not gpu.has_gpu():
        if device == "cuda":
            raise InputError("device 'cuda' was asked for, but torch sees no NVIDIA GPU; use --device cpu")
        log.info("device auto: the CPU, as torch sees no NVIDIA GPU")
        return (Place(CPU),)
    if not gpu.has_triton():
        lacking = "Triton, whose kernels are made for it, is not installed: pip install 'torchimpt[gpu]'"
        if device == "auto":
            log.warning("device auto: the CPU, although there is a GPU; %s", lacking)
            return (Place(CPU),)
        log.warning("device cuda: by plain torch, several times slower; %s", lacking)
    budget = GPU_SHARE * available_memory(gpu.GPU) if case.dose.gpu_memory_gb is None else case.dose.gpu_memory_gb * 1e9
    if device == "cuda" or case.dose.gradient == "autograd":
        log.info("device %s: %s alone", device, gpu.GPU)
        return (Place(gpu.GPU),)
    log.info("device auto: %s with up to %.1f GB of tables and matrices, the CPU for what is left", gpu.GPU, budget / 1e9)
    return Place(gpu.GPU, budget), Place(CPU)


def placement(places: Sequence[Place], position: torch.Tensor, matrices: bool) -> Placement:
    """Which scenarios lie where, to be decided when the first one's tables are there, for spots at `position` `(n_spots, 2)`."""

    def size(operator: DoseOperator) -> tuple[float, float]:
        if not matrices:
            return operator.n_bytes, 0.0
        n_nonzeros = int(entry_counts(operator, position.cpu()).sum())
        # range errors make a scenario's matrix a few per cent larger than the nominal one
        return operator.n_bytes + 1.05 * matrix_bytes(n_nonzeros, operator), n_nonzeros * SORT_BYTES

    return Placement(places, size)


def sorting(values: torch.Tensor) -> None:
    """The dearest of what an objective does with doses `(n_scenarios, n)`: all in order, as a dose-volume goal may have them."""
    values.sort(dim=-1)


def selection(values: torch.Tensor) -> None:
    """What is done in its place where it is enough: the dose that so many voxels exceed, and which voxels those are."""
    level = values.kthvalue(max(1, values.shape[-1] // 2), dim=-1, keepdim=True).values
    (values > level).sum(-1)


def seconds(work: Callable[[torch.Tensor], None], values: torch.Tensor, repeats: int = 5) -> float:
    """Least seconds of the work where the values are, after a first call; a GPU is waited for."""

    def once() -> float:
        begin = time.perf_counter()
        work(values)
        if values.device.type == "cuda":
            torch.cuda.synchronize(values.device)
        return time.perf_counter() - begin

    once()
    return min(once() for _ in range(repeats))


def fastest(places: Sequence[Place], n_scenarios: int, n_voxels: int, dtype: torch.dtype) -> torch.device:
    """The device where an objective's terms are evaluated fastest at so many doses: tried, where there are several."""
    devices = list(dict.fromkeys(place.device for place in places))
    if len(devices) == 1:
        return devices[0]
    values = torch.rand(n_scenarios, max(1, n_voxels), dtype=dtype)
    taken = {device: seconds(sorting, values.to(device)) for device in devices}
    best = min(devices, key=lambda device: taken[device])
    told = ", ".join(f"{device} {1e3 * taken[device]:.2f} ms" for device in devices)
    log.info("objective terms are evaluated on %s (sorting %d doses of %d scenarios: %s)", best, n_voxels, n_scenarios, told)
    return best
