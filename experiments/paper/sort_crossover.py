"""Is an objective's sorting faster on the CPU or on the GPU, by the number of doses? (Xu et al., Fig. 2.)

    python experiments/paper/sort_crossover.py [--largest 4000000] [--out runs/sort_crossover.json]

A dose-volume goal needs the doses of its ROI in order, or, which is enough for most, the one dose that so many voxels exceed (selection).
Printed are microseconds by the number of doses in float32: on the CPU with one thread and with all, on the GPU with the doses there
already, and with their way to it and back as where the dose was computed on the CPU. Where torch sees no GPU the CPU alone is printed. From
where on the GPU is faster is said at the end. Half a minute.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from torchimpt.dose import gpu
from torchimpt.planning.devices import seconds, selection, sorting
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.flags import flags

WAYS = {"sort": sorting, "select": selection}


@dataclass(frozen=True)
class Config:
    """Flags."""

    smallest: int = 100
    largest: int = 4_000_000
    repeats: int = 7
    out: str = "runs/sort_crossover.json"


def sizes(config: Config) -> list[int]:
    """About half a decade apart."""
    found, n = [], float(config.smallest)
    while n <= config.largest:
        found.append(round(n))
        n *= 10.0**0.5
    return found


def there_and_back(work):
    """The work on the GPU for doses of the CPU, and as many numbers back: an objective's gradient."""

    def all_of_it(values: torch.Tensor) -> None:
        moved = values.to(gpu.GPU)
        work(moved)
        moved.cpu()

    return all_of_it


def measure(n: int, config: Config) -> dict[str, float]:
    """Microseconds of each way on each device."""
    values, threads = torch.rand(1, n, generator=torch.Generator().manual_seed(n)), torch.get_num_threads()
    row: dict[str, float] = {}
    for name, work in WAYS.items():
        for count in dict.fromkeys((1, threads)):
            torch.set_num_threads(count)
            row[f"{name}, CPU x{count}"] = 1e6 * seconds(work, values, config.repeats)
        if gpu.has_gpu():
            row[f"{name}, GPU"] = 1e6 * seconds(work, values.to(gpu.GPU), config.repeats)
            row[f"{name}, GPU and way"] = 1e6 * seconds(there_and_back(work), values, config.repeats)
    torch.set_num_threads(threads)
    return row


def crossover(table: dict[int, dict[str, float]], slow: str, fast: str) -> str:
    """From which number of doses on `fast` is faster than `slow`."""
    ahead = [n for n, row in table.items() if row[fast] < row[slow]]
    begin = next((n for n in table if all(other in ahead for other in table if other >= n)), None)
    return f"{fast} is faster than {slow} " + ("at none of these" if begin is None else f"from {begin:,} doses on")


def main(config: Config) -> dict:
    """Measure, print, write."""
    machine = about()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    card = torch.cuda.get_device_name() if gpu.has_gpu() else None
    print(f"GPU: {card}" if card else "no GPU: the CPU alone")
    table = {n: measure(n, config) for n in sizes(config)}
    names = list(next(iter(table.values())))
    print("\nmicroseconds\n" + f"{'doses':>10s}" + "".join(f"{name:>20s}" for name in names))
    for n, row in table.items():
        print(f"{n:10,d}" + "".join(f"{row[name]:20.1f}" for name in names))
    one, most = "CPU x1", f"CPU x{torch.get_num_threads()}"
    pairs = [(f"sort, {most}", f"select, {most}"), (f"sort, {one}", f"sort, {most}"), (f"select, {one}", f"select, {most}")]
    if card:
        pairs += [(f"{way}, {most}", f"{way}, {where}") for way in WAYS for where in ("GPU", "GPU and way")]
    told = [crossover(table, slow, fast) for slow, fast in pairs if slow != fast]
    print("\n" + "\n".join(told))
    found = {"machine": machine, "gpu": card, "config": asdict(config), "microseconds": table, "crossovers": told}
    write_json(Path(config.out), found)
    print(f"wrote {config.out}")
    return found


if __name__ == "__main__":
    main(flags(Config, __doc__))
