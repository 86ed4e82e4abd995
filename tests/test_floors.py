"""Imports go down only: the floors of the house, walked file by file. What is imported for type checking alone counts, too."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "torchimpt"

FLOORS = (
    {"checks", "constants", "loops", "sums", "version"},
    {"contours", "files", "geometry", "memory", "processes", "quantities", "scenarios", "unpacked"},
    {"columns", "matfile"},
    {"scanner"},
    {"hu_table"},
    {"patient"},
    {"physics", "resampling"},
    {"margins", "points"},
    {"machine", "phantoms"},
    {"spots"},
    {"dose"},
    {"objectives"},
    {"optim"},
    {"schemes"},
    {"commissioning", "evaluate", "io"},
    {"report"},
    {"watch"},
    {"case"},
    {"migration", "planning"},
    {"runs"},
    {"inspection", "studies"},
    {"cli"},
    {"__main__"},
)
"""Rooms from the ground up. A room knows itself and the floors below, no neighbour."""

STRANGERS = {
    "objectives": {"dose", "machine", "spots"},
    "optim": {"dose", "machine", "patient", "physics", "spots", "objectives", "quantities", "processes"},
    "evaluate": {"dose", "machine", "optim", "objectives", "schemes"},
    "io": {"dose", "optim", "objectives", "schemes"},
    "report": {"dose", "optim", "objectives", "schemes", "io"},
}
"""Rooms below that a room must not know either: a solver sees values and gradients, not what they are of."""

FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    """The first name below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(node: ast.AST) -> list[str]:
    """Dotted names that the code imports when it runs, `a.b.c` for `from a.b import c`."""
    names: list[str] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            names += [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative import; write the whole name, as everywhere"
            names += [f"{child.module}.{alias.name}" for alias in child.names]
        else:
            names += imported(child)
    return names


def own(path: Path) -> list[str]:
    """What the file imports of this package, without the package's name."""
    names = imported(ast.parse(path.read_text(encoding="utf-8")))
    return [name.removeprefix("torchimpt.") for name in names if name.startswith("torchimpt.")]


def file_of(name: str) -> str:
    """The package's file that a dotted name is in, relative to the package."""
    parts = name.split(".")
    while parts:
        path = PACKAGE.joinpath(*parts)
        for found in (path.with_suffix(".py"), path / "__init__.py"):
            if found.is_file():
                return str(found.relative_to(PACKAGE))
        parts.pop()
    return "__init__.py"


def test_every_room_has_its_floor() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_imports_from_lower_floors(path: Path) -> None:
    room = room_of(path)
    for name in own(path):
        other = name.split(".")[0]
        if other != room:
            assert FLOOR[other] < FLOOR[room], f"{path} imports torchimpt.{name}: floor {FLOOR[other]} from floor {FLOOR[room]}"
            assert other not in STRANGERS.get(room, ()), f"{path} imports torchimpt.{name}: {room} must not know {other}"


def test_below_the_solvers_nobody_knows_an_optimizer() -> None:
    for path in FILES:
        if FLOOR[room_of(path)] < FLOOR["optim"]:
            known = [
                name for name in imported(ast.parse(path.read_text(encoding="utf-8"))) if name.startswith(("torch.optim", "scipy.optimize"))
            ]
            assert not known, f"{path} imports {known}"


def test_no_circle_of_files() -> None:
    files = {str(path.relative_to(PACKAGE)): path for path in FILES}
    graph = {name: {file_of(other) for other in own(path)} - {name, "__init__.py"} for name, path in files.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(files)


def test_walk_sees_nested_and_typing_imports() -> None:
    code = "if TYPE_CHECKING:\n    import torchimpt.cli\ndef f():\n    from torchimpt.optim import minimize\n"
    assert imported(ast.parse(code)) == ["torchimpt.cli", "torchimpt.optim.minimize"]


def test_experiments_know_no_commands() -> None:
    scripts = [path for folder in ("experiments", "benchmarks") for path in (PACKAGE.parent / folder).glob("*.py")]
    assert len(scripts) > 10
    for path in scripts:
        known = [name for name in imported(ast.parse(path.read_text(encoding="utf-8"))) if name.startswith("torchimpt.cli")]
        assert not known, f"{path} imports {known}"
