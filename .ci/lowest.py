"""The oldest versions that pyproject.toml allows, installed into an environment of their own, and the quick tests run with them.

    python3 .ci/lowest.py [FOLDER]

FOLDER is made anew (default .venv-lowest). Not part of `make test`: an old torch brings gigabytes of CUDA along on Linux.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {"ruff", "mypy", "triton"}
"""Of the test extra, but no part of the tests, or bound to one torch: they stay as they are pinned."""


def lowest(requirements: list[str]) -> list[str]:
    """`name==bound` of every `name>=bound`."""
    return [requirement.replace(">=", "==") for requirement in requirements if re.match(r"[\w-]+", requirement)[0] not in TOOLS]


def main() -> None:
    """Install and test."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".venv-lowest")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = lowest([*project["dependencies"], *project["optional-dependencies"]["test"]])
    print("\n".join(wanted), flush=True)
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "-e", ROOT], check=True)
    # old versions warn of one another, so that warnings are no errors here
    tests = [python, "-m", "pytest", "-m", "not slow", "-q", "-n", "2", "-o", "filterwarnings=default"]
    sys.exit(subprocess.run(tests, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
