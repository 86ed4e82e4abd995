"""The README's Python runs as it stands there, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_readme_has_python() -> None:
    assert BLOCKS


def test_it_keeps_to_two_screens() -> None:
    assert len(README.splitlines()) <= 100


@pytest.mark.slow
def test_python_blocks_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for i, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md, Python block {i + 1}", "exec"), names)
    assert names["spots"].position.grad is not None


def test_linked_files_are_there() -> None:
    linked = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert linked
    for target in linked:
        file, _, anchor = target.partition("#")
        assert (ROOT / file).exists(), target
        titles = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE) if anchor else []
        assert anchor in ["", *(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)], target


def test_commands_named_are_there() -> None:
    for script in re.findall(r"python ((?:experiments|benchmarks)/\S+\.py)", README):
        assert (ROOT / script).is_file(), script
    for case in re.findall(r"experiments/cases/\w+\.toml", README):
        assert (ROOT / case).is_file(), case
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z]+)\b", README):
        assert f"\n{target}:" in makefile, target
