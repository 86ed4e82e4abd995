"""The documentation: what its pages name is there, its Python runs, and its site is built without a warning and read without a network.

Links between the pages, and to files of the repository, are checked by the build.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import typer
from pydantic import BaseModel, TypeAdapter
from test_floors import FLOOR

from torchimpt.case import Case, load_case
from torchimpt.case.sections import OpenSection
from torchimpt.case.values import ExistingPath
from torchimpt.cli.app import app
from torchimpt.cli.template import write_case
from torchimpt.studies.browser import browser, find_chromium

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in (*PAGES, ROOT / "README.md")}
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers", "latex2mathml")


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Lines of shell blocks, without comments."""
    return [line.split(" #")[0].strip() for block in blocks(text, "sh") for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_scripts_are_there(name: str) -> None:
    text, known = TEXTS[name], typer.main.get_command(app).commands
    for line in commands(text):
        called = re.match(r"torchimpt (\w+)", line)
        assert called is None or called[1] in known, line
    for script in re.findall(r"python ((?:experiments|benchmarks)/\S+?\.py)", text):
        assert (ROOT / script).is_file(), script
    for case in re.findall(r"experiments/cases/[\w/]+\.toml", text):
        assert (ROOT / case).is_file(), case


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as context:
        context.chdir(tmp_path_factory.mktemp("case"))
        return write_case("first").absolute()


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md", "docs/runs.md"])
def test_keys_that_are_set_are_keys(name: str, template: Path) -> None:
    found = [override for line in commands(TEXTS[name]) for override in re.findall(r"--set (\S+)", line)]
    assert found
    for override in found:
        assert isinstance(load_case(template, [override]), Case)


def section(name: str) -> type[BaseModel]:
    """The class of a section of the case file."""
    kind = Case.model_fields[name].annotation
    (model,) = [part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, BaseModel)]
    return model


def check_keys(name: str, rows: Any) -> None:
    """What a page shows of a section: its keys are there, and the values are of their types."""
    model = section(name)
    for row in rows if isinstance(rows, list) else [rows]:
        for key, value in row.items():
            if key not in model.model_fields:
                assert issubclass(model, OpenSection), f"{name}.{key}"
                continue
            field = model.model_fields[key]
            if "Path" not in str(field.annotation) and ExistingPath not in get_args(field.annotation):
                TypeAdapter(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation).validate_python(value)


HOW_TO = ("tutorial", "patients", "machines", "letd", "constraints")


@pytest.mark.parametrize("name", HOW_TO)
def test_sections_that_are_shown_are_sections(name: str) -> None:
    shown = blocks(TEXTS[f"docs/{name}.md"], "toml")
    assert shown
    for block in shown:
        for key, rows in tomllib.loads(block).items():
            check_keys(key, rows)


def test_every_page_is_in_the_nav_of_mkdocs_yml() -> None:
    nav = re.findall(r"[\w/]+\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1], flags=re.MULTILINE)
    made = {"case_file.md", "command_line.md"}
    assert set(nav) - made == {page.relative_to(DOCS).as_posix() for page in PAGES}


def test_every_room_has_its_page() -> None:
    told = set(
        re.findall(r"^::: torchimpt\.(\w+)$", "\n".join(TEXTS[name] for name in TEXTS if name.startswith("docs/api/")), re.MULTILINE)
    )
    assert told == set(FLOOR) - {"cli", "version", "__main__"}


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    found = blocks(TEXTS["docs/tutorial.md"], "python")
    for i, block in enumerate(found):
        exec(compile(block, f"tutorial.md, Python block {i + 1}", "exec"), names)
    assert len(found) == 3 and names["result"].metrics["goals"][0]["metric"] == "d(95)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        pytest.skip(f"the documentation needs {', '.join(missing)}: pip install -e '.[docs]' -c constraints.txt")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_formulas_docstrings_keys_and_sources(site: Path) -> None:
    physics, dose, keys, told = (
        (site / name).read_text(encoding="utf-8") for name in ("physics.html", "api/dose.html", "case_file.html", "command_line.html")
    )
    assert physics.count("<math") > 100 and "arithmatex" not in physics
    assert 'href="api/dose.html#torchimpt.dose.pencil_beam.kernel.pair_partials"' in physics
    assert 'id="torchimpt.dose.pencil_beam.kernel.pair_partials"' in dose
    fields = [key for name in ("dose", "spots", "joint", "optimizer", "delivery") for key in section(name).model_fields]
    assert not [key for key in (*Case.model_fields, *fields) if not re.search(rf"<code>\[*{key}\]*</code>", keys)]
    assert not [name for name in typer.main.get_command(app).commands if f"torchimpt {name}" not in told]
    # a file that only pages link to
    assert "class" in (site / "source/torchimpt/optim/problem.py.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def visits(site: Path) -> Iterator[dict[str, tuple[list[str], list[str]]]]:
    """By page what a browser complained of, and what it asked for."""
    if find_chromium() is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    found = {}
    for name in ("index.html", "physics.html", "api/dose.html"):
        with browser() as page:
            page.open(site / name)
            found[name] = (page.problems, page.requests)
    yield found


@pytest.mark.slow
def test_the_site_asks_no_network_for_anything(visits: dict[str, tuple[list[str], list[str]]]) -> None:
    for name, (problems, requests) in visits.items():
        assert requests and not [address for address in requests if not address.startswith(("file:", "data:", "about:", "blob:"))], name
        assert not problems, name
