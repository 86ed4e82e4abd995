"""The names that `import torchimpt as ti` offers."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import torchimpt as ti

PACKAGE = Path(ti.__file__).parent


@pytest.mark.parametrize("name", ti.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(ti, name) is not None


def test_no_name_is_a_file_of_the_package() -> None:
    """Importing a submodule puts it into the package under its own name, and would hide a function of that name."""
    files = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    hidden = [name for name in ti.__all__ if name in files and not isinstance(getattr(ti, name), ModuleType)]
    assert not hidden


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attribute PencilBeam"):
        _ = ti.PencilBeam


def test_installed_packages_are_typed() -> None:
    """Type checkers read the stub and the annotations where the marker is there."""
    assert (PACKAGE / "py.typed").is_file()


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, torchimpt; print([m for m in ('torch', 'numba', 'numpy', 'matplotlib', 'scipy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    """What the checkout has and an installed package lacks shows only at users'. Built without an environment of its own: no network."""
    root = PACKAGE.parent
    known = subprocess.run(["git", "ls-files", "torchimpt"], cwd=root, capture_output=True, text=True)
    if known.returncode or not known.stdout:
        pytest.skip("not a checkout: git does not know the package's files")
    pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 or newer builds the wheel: pip install -e '.[test]'")
    for name in known.stdout.split():  # a copy, so that nothing is left in the checkout
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes((root / name).read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / "copy" / name).write_bytes((root / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(tmp_path / "copy")], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("torchimpt-*.whl")
    assert not set(known.stdout.split()) - set(zipfile.ZipFile(wheel).namelist())
