"""Case files with other keys and values than they have, by hypothesis: read, and written out the same, or refused in one line."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_case import TINY

from torchimpt.case import Case, load_case
from torchimpt.case.text import dump_toml
from torchimpt.checks import InputError

MORE = """
[joint]
scheme = "joint"
box_mm = 5.0
[delivery]
min_mu = 0.1
machine = "synchrotron"
[[roi]]
name = "Ring"
of = "Target"
margin_mm = 10.0
without = ["Target"]
[[material]]
roi = "External"
rsp = 1.05
[[tissue]]
roi = "Target"
alpha_beta_gy = 10.0
"""
TREE = tomllib.loads(TINY + MORE)


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """Where there is a value: its keys from the top."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in pairs for place in [(*path, key), *places(value, (*path, key))]]


NUMBERS = st.integers() | st.integers(-1, 5) | st.floats() | st.floats(0, 100)
PLAIN = st.booleans() | NUMBERS | st.text(max_size=20) | st.sampled_from(["Target", "External", "auto", "sum", "cvar", "gEUD", "matrix"])
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)
CHANGES = st.tuples(st.sampled_from(places(TREE)), st.sampled_from(["value", "key", "gone", "twice"]), VALUES)

LISTS = st.lists(CHANGES, min_size=1, max_size=3)


def changed(changes: list[tuple[tuple, str, Any]]) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    for (*way, last), what, value in changes:
        node: Any = tree
        try:
            for key in way:
                node = node[key]
            if what == "gone":
                del node[last]
            elif what == "key" and isinstance(node, dict):
                node[str(value)] = node.pop(last)
            elif what == "twice" and isinstance(node, list):
                node.append(copy.deepcopy(node[last]))
            else:
                node[last] = value
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            pass
    return tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cases")


def check(folder: Path, changes: list) -> None:
    """Read the tree from a file and as it is."""
    tree = changed(changes)
    path = folder / "case.toml"
    path.write_text(dump_toml(tree), encoding="utf-8", errors="replace")
    for read in (lambda: load_case(path), lambda: Case(**tree)):
        try:
            case = read()
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) > 20
            continue
        except TypeError as error:  # a keyword that is no text, or `self`
            assert "keyword" in str(error) or "multiple values" in str(error)
            continue
        again = folder / "again.toml"
        again.write_text(case.to_toml(), encoding="utf-8")
        assert load_case(again).to_toml() == case.to_toml()
        case.scenarios(), case.terms(), case.beams(None) if case.beam and not shifted(case) else ()
        assert len(case.goals()) == len(case.goal) and case.delivery.model().fractions > 0


def shifted(case: Case) -> bool:
    """Whether a beam takes the machine's range shifter, which is not asked for here."""
    return any(beam.range_shifter_mm == "auto" for beam in case.beam)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(changes=LISTS)
@example(changes=[(("seed",), "value", 2**70)])
@example(changes=[(("dose", "grid_mm"), "value", [1e308, 1e308, 1e308])])
def test_a_case_is_read_as_it_is_or_refused_in_one_line(folder, changes):
    check(folder, changes)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(changes=LISTS)
def test_many_cases(folder, changes):
    check(folder, changes)
