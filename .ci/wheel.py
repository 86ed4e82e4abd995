"""A built wheel in a clean environment of each Python that there is: installed, imported, asked for help, and a small plan made with it.

    python3 .ci/wheel.py [PYTHON ...] [--pins constraints.txt]

PYTHON are programs (default: this one). The wheel is built once and must hold every file of the package that git knows; everything runs in
a folder of its own, away from the checkout. Prints seconds of `import torchimpt` (aim 0.5) and of `torchimpt --help` (aim 1), the median of
five after the first. Not part of `make test`, which looks into the wheel without installing what it needs (`tests/test_package.py`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AIMS = {"import torchimpt": 0.5, "torchimpt --help": 1.0}
SMALL = ["dose.grid_mm=6", "spots.spacing_mm=10", "optimizer.max_iterations=3", "optimizer.tolerance=0.5"]
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}


def build(folder: Path) -> Path:
    """The wheel of the last commit, with every file that git knows of the package."""
    copy = folder / "copy"  # what a build leaves stays out of the checkout
    subprocess.run(["git", "clone", "--quiet", ROOT, copy], check=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, copy], check=True, env=CLEAN)
    (wheel,) = folder.glob("torchimpt-*.whl")
    known = subprocess.run(["git", "ls-files", "torchimpt"], cwd=copy, check=True, capture_output=True, text=True).stdout.split()
    missing = sorted(set(known) - set(zipfile.ZipFile(wheel).namelist()))
    if missing:
        sys.exit(f"the wheel lacks {', '.join(missing)}: see package-data in pyproject.toml")
    return wheel


def seconds(command: list[str], folder: Path) -> float:
    """Median of five, after a first that compiles."""
    taken = []
    for _ in range(6):
        begin = time.perf_counter()
        subprocess.run(command, check=True, cwd=folder, env=CLEAN, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def tried(python: str, wheel: Path, pins: Path | None) -> bool:
    """Install, time, plan; whether the aims are met."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([python, "-m", "venv", folder / "venv"], check=True, env=CLEAN)
        bin_ = folder / "venv" / "bin"
        pinned = [] if pins is None else ["-c", pins]
        install = [bin_ / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pinned, wheel]
        subprocess.run(install, check=True, env=CLEAN)
        version = subprocess.run([bin_ / "python", "--version"], check=True, capture_output=True, text=True).stdout.strip()
        taken = {
            "import torchimpt": seconds([bin_ / "python", "-c", "import torchimpt"], folder),
            "torchimpt --help": seconds([bin_ / "torchimpt", "--help"], folder),
        }
        subprocess.run([bin_ / "torchimpt", "new", "small"], check=True, cwd=folder, env=CLEAN, stdout=subprocess.DEVNULL)
        case = next(folder.glob("**/small*.toml"))
        settings = [word for value in SMALL for word in ("--set", value)]
        begin = time.perf_counter()
        plan = subprocess.run([bin_ / "torchimpt", "plan", case, "--out", "run", "--quiet", *settings], cwd=folder, env=CLEAN, check=False)
        whole = time.perf_counter() - begin
        pages = (folder / "run" / "report.html").is_file()
    times = ", ".join(f"{what} {s:.2f} s (aim {AIMS[what]:g})" for what, s in taken.items())
    planned = plan.returncode in (0, 3) and pages
    print(f"{version}: {times}, a small plan {whole:.0f} s{'' if planned else ': FAILED'}", flush=True)
    return planned and all(s <= AIMS[what] for what, s in taken.items())


def main() -> None:
    """Build, try with each Python."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="*", default=[sys.executable])
    parser.add_argument("--pins", type=Path, default=ROOT / "constraints.txt")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB", flush=True)
        results = [tried(python, wheel, asked.pins) for python in asked.python]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
