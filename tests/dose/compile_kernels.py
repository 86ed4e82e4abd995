"""Compile the Triton kernels to machine code of a GPU, which needs none: a process of its own, without the interpreter.

    python tests/dose/compile_kernels.py 90

Prints one JSON line a kernel: name, precision, registers that were spilled to memory (bytes), and bytes of shared memory.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torchimpt.dose import triton_csr
from torchimpt.dose.pencil_beam import triton_gpu, triton_kernels
from torchimpt.dose.rows import CELL_WIDTH, ROW_HEIGHT

INTEGERS = dict.fromkeys(("addresses", "sizes", "start", "layers", "counts", "room"), "*i64") | {"tiles": "*i32", "columns": "*i32"}
ROWS = {"HEIGHT": ROW_HEIGHT, "WIDTH": CELL_WIDTH}
TILES = {"BAND": triton_gpu.BAND, "CELL": triton_gpu.CELL, "VOXELS": triton_gpu.TILE, "SPOTS": triton_gpu.SPOTS}
RUNS = {"ROWS": triton_gpu.ROWS, "VOXELS": triton_gpu.RUN}
REALS = {
    "dose_kernel": ("doses", "frame", "reach", "shape", "x", "y", "w", "corner"),
    "gradient_kernel": ("gradient", "residuals", "frame", "reach", "shape", "x", "y", "w"),
    "entries_kernel": ("values", "frame", "reach", "shape", "x", "y"),
}
ONES = dict.fromkeys(("n_scenarios", "n_components", "n_layers", "n_bands", "n_cells"), 1)
"""Triton compiles an argument that is 1 into the kernel."""

JOBS = [
    (triton_kernels.dose_kernel, TILES, {}),
    *((triton_kernels.gradient_kernel, {"MOVE": move, **ROWS, **RUNS}, {"num_warps": 2}) for move in (True, False)),
    *(
        (triton_kernels.entries_kernel, {"FILL": fill, **ROWS, "VOXELS": triton_gpu.RUN_ENTRIES}, {"num_warps": 2})
        for fill in (True, False)
    ),
]


def compiled(kernel, signature: dict, constants: dict, options: dict, capability: int) -> dict:
    """What became of it."""
    types = {name: "constexpr" if name in constants else signature.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature=types, constexprs=constants)
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    fields = dict(field.split(":", 1) for field in usage.splitlines()[-1].split() if ":" in field)
    return {"registers": int(fields["REG"]), "spilled": int(fields["LOCAL"]) + int(fields["STACK"]), "shared": found.metadata.shared}


def main(capability: int) -> None:
    """All of them, in both precisions."""
    for real in ("fp32", "fp64"):
        for kernel, constants, options in JOBS:
            name = kernel.fn.__name__
            signature = {**INTEGERS, **dict.fromkeys(REALS[name], f"*{real}")}
            alone = {name: one for name, one in ONES.items() if name in kernel.arg_names}
            for known in (constants, {**constants, **alone}):
                print(json.dumps({"kernel": name, "real": real, **compiled(kernel, signature, known, options, capability)}))
    for value in ("fp16", "bf16", "fp32", "fp64"):
        real = "fp64" if value == "fp64" else "fp32"
        signature = {"out": f"*{real}", "x": f"*{real}", "values": f"*{value}", "start": "*i32", "columns": "*i32"}
        found = compiled(triton_csr.product_kernel, signature, {"BLOCK": 512}, {"num_warps": 4}, capability)
        print(json.dumps({"kernel": "product_kernel", "real": value, **found}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
