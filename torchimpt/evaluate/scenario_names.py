"""Scenarios from text, as the command line takes them: `nominal,x+5mm,range-3.5%`, `boundary(5,5)`, `random(5,3,100)`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torchimpt.checks import InputError
from torchimpt.scenarios import NOMINAL, SETS, Scenario

_FORMS = "nominal, x-3mm, y+5mm, z+2.5mm, range+3.5%, two of them at once as x+3mm/range-3%, or boundary, grid21 or grid81 "
_FORMS += "(SETUP_MM,RANGE_PERCENT), random(SETUP_MM,RANGE_PERCENT,SAMPLES,SEED)"
_NUMBER = r"[0-9]*\.?[0-9]+"


def _scenario(text: str) -> Scenario:
    """One scenario from its parts, which are joined by `/`."""
    shift, scale = [0.0, 0.0, 0.0], 1.0
    for part in text.split("/"):
        setup = re.fullmatch(rf"([xyz])([+-]{_NUMBER})mm", part)
        stretch = re.fullmatch(rf"range([+-]{_NUMBER})%", part)
        if setup:
            shift["xyz".index(setup[1])] += float(setup[2])
        elif re.fullmatch(r"random\d+|nominal", part):  # what random scenarios are numbered by
            continue
        elif stretch:
            scale *= 1.0 + float(stretch[1]) / 100.0
        else:
            raise InputError(f"scenario '{text}' is none of: {_FORMS}")
    return Scenario(text, shift=(shift[0], shift[1], shift[2]), range_scale=scale)


def _set(name: str, arguments: str) -> tuple[Scenario, ...]:
    """A set of scenarios from its name and what stands in its brackets."""
    most = 2 if name != "random" else 4
    sizes = re.fullmatch(rf"\s*({_NUMBER})\s*(?:mm)?\s*,\s*({_NUMBER})\s*%?\s*((?:,\s*[0-9]{{1,9}}\s*)*)", arguments)
    whole = [int(number) for number in sizes[3].split(",")[1:]] if sizes else []
    if name not in SETS or sizes is None or 2 + len(whole) > most:
        raise InputError(f"scenario '{name}({arguments})' is none of: {_FORMS}")
    return SETS[name](float(sizes[1]), float(sizes[2]), *whole)


def parse_scenarios(texts: str | Iterable[str]) -> tuple[Scenario, ...]:
    """Scenarios by name, the nominal one always first, each once.

    Parameters
    ----------
    texts
        Comma-separated names, one string or several: `nominal`, a setup shift of the patient along an LPS axis in mm (`x+5mm`), a range
        error in percent of the stopping power (`range-3.5%`: the beam goes farther), combinations joined by `/`, or a set by its name
        in a case file: `boundary(5,3)` for the nine boundary scenarios of 5 mm and 3 %, `grid21(5,3)`, `grid81(5,3)`, and `random(5,3,100)`
        or, with a seed, `random(5,3,100,7)` for a hundred random ones whose errors have half of that as standard deviations.
    """
    found = [NOMINAL]
    for text in [texts] if isinstance(texts, str) else texts:
        for name in (part.strip() for part in re.findall(r"[a-z0-9]+\([^)]*\)|[^,]+", text)):
            called = re.fullmatch(r"([a-z0-9]+)\((.*)\)", name)
            if called:
                found += _set(called[1], called[2])
            elif name != NOMINAL.name:
                found.append(_scenario(name))
    return tuple({scenario.name: scenario for scenario in found}.values())
