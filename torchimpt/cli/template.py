"""`torchimpt new`: the commented case file. `{optimizer.method}` in the template becomes the names that this key takes."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from torchimpt.case import Case
from torchimpt.case.text import choices
from torchimpt.checks import InputError, is_plain
from torchimpt.files import whole_or_nothing


def write_case(name: str) -> Path:
    """Write `NAME.toml` and return its path; an existing file is never replaced.

    Parameters
    ----------
    name
        Of the case, with or without `.toml`; it may have a folder in front, which must exist.
    """
    path = Path(name if name.endswith(".toml") else f"{name}.toml")
    if path.name == ".toml" or '"' in name or "\\" in name or not is_plain(name):
        raise InputError(f"'{name}' cannot name a case; give a plain name such as prostate_1")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} to; make it first")
    if path.exists():
        raise InputError(f"{path} exists already; give another name, or take it away first")
    text = files("torchimpt.cli").joinpath("template.toml").read_text(encoding="utf-8")
    text = re.sub(r"\{(\w+)\.(\w+)\}", lambda key: " | ".join(choices(Case, key.groups())), text)
    with whole_or_nothing(path) as scratch:
        scratch.write_text(text.replace("{file}", str(path)).replace("{name}", path.stem), encoding="utf-8")
    return path
