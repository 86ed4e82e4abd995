"""What does a machine that was fitted to tables lose against the tables themselves, in dose against Monte Carlo?

    python experiments/commission_check.py [--folder ../shared/data/mc]

`torchimpt commission` fits the folder's depth doses, spots in air and widths in water; the dose with that machine and with the CSV machine
is compared with Monte Carlo as `monte_carlo_check.py` does. Takes about 40 seconds on 2 cores.

What came out: gamma 2 %/2 mm 99.98 to 100 % (100 % with the CSV machine); R80 within 0.19 mm (0.13 mm) in water, 0.60 mm (0.05 mm) behind
the lung step at x = 10 mm, integral within 0.9 % (0.6 %). The formula's peak is 2 % too high at its tip, because straggling is not Gaussian
there, and that moves R80 by 0.04 to 0.1 mm.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from monte_carlo_check import cases, check

from torchimpt.commissioning import commission, read_tables, summary
from torchimpt.machine import read_csv_machine
from torchimpt.studies.flags import flags

CONFIG = """name = "commissioned"
sad_mm = [2000.0, 2000.0]
[depth_dose]
path = "{folder}/idd.csv"
[air]
path = "{folder}/beam_model.csv"
[water]
path = "{folder}/sigma.csv"
"""


@dataclass(frozen=True)
class Config:
    """Flags."""

    folder: str = "../shared/data/mc"


def main(config: Config) -> None:
    folder = Path(config.folder).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.toml"
        path.write_text(CONFIG.format(folder=folder))
        result = commission(read_tables(path))
    print(summary(result))
    print(f"{'':16s} {'gamma %':>16s} {'R80 mm':>16s} {'integral %':>16s}   csv machine, commissioned one")
    for name in cases(folder):
        a, b = (check(folder, name, machine) for machine in (read_csv_machine(folder), result.machine))
        print(f"{name:16s} {a.gamma:8.2f}{b.gamma:8.2f} {a.r80:8.3f}{b.r80:8.3f} {a.integral:8.2f}{b.integral:8.2f}")


if __name__ == "__main__":
    main(flags(Config, __doc__))
