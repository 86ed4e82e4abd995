"""A GPU that is not there: tensors on a device of its own, with their numbers on the CPU.

What a GPU's tensors refuse is refused: operations with tensors of the CPU, `.numpy()`. What crosses between the two is written down. So code that
moves between devices runs to its end where there is no GPU, and tests see what it moves. It says nothing about kernels and speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_COPIES = ("_to_copy", "copy_", "lift_fresh", "index", "index_put_", "index_put", "_index_put_impl_")
"""What takes tensors of both: copies, and indices, which a GPU's tensor may have on the CPU."""


class OnGpu(torch.Tensor):
    """A tensor on the GPU that is not there."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> OnGpu:
        """Around the numbers."""
        dense = real.layout == torch.strided
        like = {"strides": real.stride(), "storage_offset": real.storage_offset()} if dense else {}
        made = torch.Tensor._make_wrapper_subclass(cls, real.size(), dtype=real.dtype, device=DEVICE, **like)
        made.numbers = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Run where the mode is not: in autograd's own threads."""
        return _run(func, args, kwargs or {}, None)

    def tolist(self):
        """As torch's, which reads the memory itself."""
        return self.cpu().tolist()

    def __deepcopy__(self, memo):
        """Likewise."""
        return self.detach().clone().requires_grad_(self.requires_grad)


def _run(func, args, kwargs, crossed: list | None):
    """The operation on the numbers, refused where a GPU's is."""
    name = func._schema.name.removeprefix("aten::")
    flat = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    here, there = [t for t in flat if not isinstance(t, OnGpu)], [t for t in flat if isinstance(t, OnGpu)]
    mixed = bool(there) and any(t.dim() > 0 for t in here)
    if mixed and (name not in _COPIES or (name.startswith("index") and not isinstance(args[0], OnGpu))):
        raise RuntimeError(f"aten::{name}: expected all tensors to be on the same device, found the GPU and cpu")
    on_gpu, asked = bool(there), kwargs.get("device")
    if asked is not None:
        on_gpu = torch.device(asked) == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "copy_":
        on_gpu = isinstance(args[0], OnGpu)
    if crossed is not None and ((name == "_to_copy" and on_gpu != bool(there)) or (name == "copy_" and mixed)):
        crossed.append(("up" if on_gpu else "down", tuple(flat[-1].shape)))
    back = {id(t.numbers): t for t in there}
    real_args, real_kwargs = tree_map(lambda t: t.numbers if isinstance(t, OnGpu) else t, (args, kwargs))
    if kwargs.get("pin_memory"):
        real_kwargs["pin_memory"] = False
    found = func(*real_args, **real_kwargs)
    if not on_gpu:
        return found
    return tree_map(lambda t: back[id(t)] if id(t) in back else OnGpu(t) if isinstance(t, torch.Tensor) else t, found)


class PretendGpu(TorchDispatchMode):
    """While it is on, `device="cuda"` makes such tensors; `crossed` has direction and shape of all that moved."""

    def __init__(self) -> None:
        super().__init__()
        self.crossed: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Every operation."""
        return _run(func, args, kwargs or {}, self.crossed)


@contextlib.contextmanager
def pretend_gpu(patch: pytest.MonkeyPatch, free: float = 1e12) -> Iterator[PretendGpu]:
    """A GPU with so many free bytes, where torchimpt looks for one. Triton cannot compile for it: plain torch computes in its place."""
    from torchimpt import memory
    from torchimpt.dose import gpu
    from torchimpt.planning import devices

    tensor, as_tensor, available = torch.tensor, torch.as_tensor, memory.available_memory

    def made(data, *, device=None, **options):
        return tensor(data, **options).to(device or "cpu")

    def taken(data, *, device=None, dtype=None):
        return (data if isinstance(data, torch.Tensor) else as_tensor(data)).to(device=device, dtype=dtype)

    # torch makes these two without numbers
    patch.setattr(torch, "tensor", made)
    patch.setattr(torch, "as_tensor", taken)
    patch.setattr(gpu, "GPU", DEVICE)
    patch.setattr(gpu, "has_gpu", lambda: True)
    patch.setattr(gpu, "has_triton", lambda: True)
    for module in (memory, devices):
        patch.setattr(module, "available_memory", lambda device="cpu": free if torch.device(device) == DEVICE else available(device))
    with PretendGpu() as mode:
        yield mode
