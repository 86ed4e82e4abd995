"""Uncertainty scenarios: a setup shift and a range scale each; nominal is one of them."""

from __future__ import annotations

from dataclasses import dataclass

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
            raise InputError(f"a scenario's range scale must be a positive factor near 1, got {self.range_scale}")

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
    if not (0 <= setup < 100 and 0 <= range_percent < 50):
        raise InputError(f"setup must be 0 to 100 mm and range 0 to 50 %, got {setup} mm and {range_percent} %")
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
