"""Pages of what the code declares: the case file's keys, from its pydantic models, and the commands, from the command line itself."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from torchimpt.case.case import Case
from torchimpt.case.sections import ModeConfig, ObjectiveConfig, OpenSection
from torchimpt.case.values import MOST, OneOf
from torchimpt.cli.app import app

_PLAIN = {float: "number", int: "whole number", bool: "true, false", str: "text", Path: "path", type(None): ""}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _bounds(metadata: tuple[Any, ...]) -> str:
    parts = []
    for item in metadata:
        for one in item.metadata if isinstance(item, FieldInfo) else [item]:
            limits = {name: getattr(one, name, None) for name in _BOUNDS}
            parts += [f"{_BOUNDS[name]} {limit:g}" for name, limit in limits.items() if limit is not None and abs(limit) < MOST]
    return f" {', '.join(dict.fromkeys(parts))}" if parts else ""


def allowed(kind: Any, metadata: tuple[Any, ...] = ()) -> str:
    """What a key takes, in words."""
    for item in metadata:
        if isinstance(item, OneOf):
            return ", ".join(f"`{name}`" for name in item.names)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return allowed(parts[0], (*parts[1:], *metadata))
    if origin is Literal:
        return ", ".join(f"`{name}`" for name in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(text for part in parts if (text := allowed(part, metadata))))
    if origin is tuple:
        return f"{len(parts)} numbers"
    if origin is list:
        return f"list of {allowed(parts[0])}s"
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        return "table"
    return _PLAIN[kind] + _bounds(metadata)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "**needed**"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "" if value is None or value == "" else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(fields: Mapping[str, FieldInfo]) -> list[str]:
    rows = ["| key | takes | default | |", "|---|---|---|---|"]
    for name, field in fields.items():
        takes = allowed(field.annotation, tuple(field.metadata))
        rows.append(f"| `{name}` | {takes} | {_default(field)} | {_cell(field.description or '')} |")
    return rows


def _own_keys(section: type[OpenSection]) -> list[str]:
    """Keys that come with the class that a section names."""
    rows = [f"| `{section.names}` | its own keys (and their defaults) |", "|---|---|"]
    for name, made in section.registry.items():
        own = [p for p in inspect.signature(made).parameters.values() if p.name not in section.given]
        if own:
            keys = (f"`{p.name}`" + ("" if p.default in (p.empty, None) else f" ({p.default})") for p in own)
            rows.append(f"| `{name}` | {', '.join(keys)} |")
    return ["", *rows]


def case_keys() -> str:
    """The page of the case file's keys."""
    plain, sections = {}, []
    for name, field in Case.model_fields.items():
        kinds = [part for part in (field.annotation, *get_args(field.annotation)) if inspect.isclass(part) and issubclass(part, BaseModel)]
        if not kinds:
            plain[name] = field
            continue
        head = f"[[{name}]]" if get_origin(field.annotation) is list else f"[{name}]"
        summary = inspect.getdoc(kinds[0]).split(": ", 1)[-1]
        sections += ["", f"## `{head}` {{#{name}}}", "", summary[0].upper() + summary[1:], "", *_table(kinds[0].model_fields)]
        if issubclass(kinds[0], OpenSection):
            sections += _own_keys(kinds[0])
        if kinds[0] is ObjectiveConfig:
            sections += ["", _OWN_MODE, "", *_table(ModeConfig.model_fields)]
    return "\n".join([_CASE_KEYS, "## Above all sections", "", *_table(plain), *sections, ""])


_OWN_MODE = """### A mode of its own

`mode = "cvar"`, or a table with the mode's keys, as of `[robustness]`."""

_CASE_KEYS = """# The case file

TOML; relative paths start at the file's own folder. `torchimpt new NAME` writes a commented one that runs as it stands, every run folder
has one with all defaults written out. An unknown key, ROI or value is an error that names file, key, what is allowed and the nearest match.
`--set section.key=value` replaces any key. Made from the models that read the file when this site was built.
"""


def commands() -> str:
    """The page of the commands: what each one's `--help` prints."""
    run, parts = CliRunner(), [_COMMANDS]
    for name in typer.main.get_command(app).commands:
        told = run.invoke(app, [name, "--help"], env={"COLUMNS": "110", "TERM": "dumb"}, prog_name="torchimpt")
        parts += [f"## torchimpt {name}", "", "```text", told.output.strip(), "```", ""]
    return "\n".join(parts)


_COMMANDS = """# The command line

Results go to stdout, progress and logs to stderr. Exit status: 0 done; 2 the input is wrong (one line says what and where); 3 the solver
stopped short of its tolerance and said so (outputs are written); 130 interrupted (the last checkpoint is written). Made from the program
when this site was built.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The two pages beside those that are written."""
    for name, page in (("case_file.md", case_keys), ("command_line.md", commands)):
        files.append(File.generated(config, name, content=page()))
    return files
