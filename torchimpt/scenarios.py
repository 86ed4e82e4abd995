"""Uncertainty scenarios: a setup shift and a range scale each; nominal is one of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from torchimpt.checks import InputError, triple


@dataclass(frozen=True)
class Scenario:
    """One realisation of the uncertainties.

    Attributes
    ----------
    name
        Short and unique, e.g. `"range+3%"`: 3 % more stopping power, so a shorter range.
    shift
        Displacement of the patient, LPS, mm.
    range_scale
        Factor on every water-equivalent path length: 1.03 makes the tissue 3 % denser, the beam stops short.
    """

    name: str = "nominal"
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    range_scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", triple("a scenario's shift", self.shift))
        if not 0 < self.range_scale < 10:
            raise InputError(
                f"a scenario's range scale must be a positive factor near 1, got {self.range_scale:g}: a range error of "
                f"{100.0 * (self.range_scale - 1.0):+g} %, which has to be above -100 %"
            )

    @property
    def is_nominal(self) -> bool:
        """Whether nothing is wrong in it, whatever its name."""
        return (self.shift, self.range_scale) == (NOMINAL.shift, NOMINAL.range_scale)


NOMINAL = Scenario()


def boundary_scenarios(setup: float = 3.0, range_percent: float = 3.0) -> tuple[Scenario, ...]:
    """The nine boundary scenarios of Xu et al. 2020 (section 2.1): nominal, range -/+, setup -/+ along x, y and z.

    Parameters
    ----------
    setup
        Setup error, mm; 0 leaves the six setup scenarios out.
    range_percent
        Range error, percent of the WEPL (`"range+3%"` is the shorter range); 0 leaves the two range scenarios out.

    Examples
    --------
    >>> [scenario.name for scenario in boundary_scenarios(3.0, 3.5)][:4]
    ['nominal', 'range-3.5%', 'range+3.5%', 'x-3mm']
    """
    _check(setup, range_percent)
    scenarios = [NOMINAL]
    if range_percent > 0:
        scenarios += [
            Scenario(f"range{sign}{range_percent:g}%", range_scale=1.0 + float(f"{sign}{range_percent}") / 100.0) for sign in "-+"
        ]
    if setup > 0:
        for axis, name in enumerate("xyz"):
            for sign in "-+":
                x, y, z = (float(f"{sign}{setup}") if i == axis else 0.0 for i in range(3))
                scenarios.append(Scenario(f"{name}{sign}{setup:g}mm", shift=(x, y, z)))
    return tuple(scenarios)


def _check(setup: float, range_percent: float) -> None:
    if not (0 <= setup < 100 and 0 <= range_percent < 50):
        raise InputError(f"setup must be 0 to 100 mm and range 0 to 50 %, got {setup} mm and {range_percent} %")


def _combined(shift: Iterable[float], percent: float, digits: str = "g") -> Scenario:
    """A setup shift and a range error at once, named by what is wrong: `"x-3mm/z+3mm/range+3%"`."""
    x, y, z = shift
    parts = [f"{axis}{size:+{digits}}mm" for axis, size in zip("xyz", (x, y, z), strict=True) if size]
    parts += [f"range{percent:+{digits}}%"] if percent else []
    return Scenario("/".join(parts) or NOMINAL.name, (x, y, z), 1.0 + percent / 100.0)


def _grid(setup: float, range_percent: float, shifts: Iterable[tuple[float, ...]]) -> tuple[Scenario, ...]:
    """Every shift, in units of the setup error, with every range error; the nominal one first, each once."""
    _check(setup, range_percent)
    found = [NOMINAL, *(_combined([setup * i for i in shift], range_percent * j) for shift in shifts for j in (0, -1, 1))]
    return tuple({scenario.name: scenario for scenario in found}.values())


def grid_21(setup: float = 3.0, range_percent: float = 3.0) -> tuple[Scenario, ...]:
    """21 combined scenarios: seven setups (none, -/+ along x, y and z), each with three ranges (nominal, -, +).

    Examples
    --------
    >>> names = [scenario.name for scenario in grid_21(3.0, 3.5)]
    >>> len(names), names[:4]
    (21, ['nominal', 'range-3.5%', 'range+3.5%', 'x-3mm'])
    """
    axes = [tuple(sign if i == axis else 0 for i in range(3)) for axis in range(3) for sign in (-1, 1)]
    return _grid(setup, range_percent, [(0, 0, 0), *axes])


def grid_81(setup: float = 3.0, range_percent: float = 3.0) -> tuple[Scenario, ...]:
    """81 combined scenarios: the 27 setups of -, none and + along x, y and z at once, each with three ranges. Corners of the cube are
    `sqrt(3)` times the setup error away.
    """
    return _grid(setup, range_percent, itertools.product((0, -1, 1), repeat=3))


def random_scenarios(
    setup: float = 3.0, range_percent: float = 3.0, samples: int = 20, seed: int = 1, sigmas: float = 2.0
) -> tuple[Scenario, ...]:
    """The nominal scenario, and random ones: independent Gaussian setup errors along x, y and z and a Gaussian range error.

    Parameters
    ----------
    setup, range_percent
        Errors of so many standard deviations, mm along each axis and percent.
    samples
        How many besides the nominal one.
    seed
        Of the draw.
    sigmas
        2 by default: the standard deviations are half of `setup` and `range_percent`, and 95 % of the errors along an axis are smaller.

    Returns
    -------
    Scenarios named by number and by what is wrong in them, which is drawn to a hundredth of a mm and of a percent.
    """
    _check(setup, range_percent)
    if not (samples >= 1 and math.isfinite(sigmas) and sigmas > 0):
        raise InputError(f"random scenarios take one sample or more and a positive number of sigmas, got {samples} and {sigmas:g}")
    generator, size = torch.Generator().manual_seed(seed), torch.tensor((setup, setup, setup, range_percent), dtype=torch.float64) / sigmas
    found = [NOMINAL]
    for number in range(1, samples + 1):  # one by one, so that fewer are the first of more
        draw = size * torch.randn(4, generator=generator, dtype=torch.float64)
        x, y, z, percent = (round(error, 2) for error in draw.tolist())
        drawn = _combined((x, y, z), percent, ".2f")
        found.append(Scenario(f"random{number}/{drawn.name}", drawn.shift, drawn.range_scale))
    return tuple(found)


SETS: dict[str, Callable[..., tuple[Scenario, ...]]] = {
    "boundary": boundary_scenarios,
    "grid21": grid_21,
    "grid81": grid_81,
    "random": random_scenarios,
}
"""Sets of scenarios by their name in a case file, from setup error, range error and, of random ones, number, seed and sigmas."""
