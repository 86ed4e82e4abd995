"""The case file as text: reading TOML, `--set` overrides, one-line errors, and writing TOML back.

What the keys mean is told in `sections`; here nothing knows them.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from torchimpt.case.values import OneOf, full_path, short
from torchimpt.checks import InputError, nearest
from torchimpt.files import reader


@reader("case file")
def read_toml(path: Path) -> dict[str, Any]:
    """The file's tree; a missing file and a slip in the syntax are told in one line."""
    if path.is_dir():
        raise InputError(f"the folder {path} has no case.toml: it is no run folder, and no case file either")
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise InputError(f"no case file at {path}{nearest(path.name, beside)}; `torchimpt new NAME` writes one to start from")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


def _value(text: str) -> Any:
    """An override's value as TOML reads it; what is no TOML is taken as a string, so that `method=lbfgs` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # of the latter kind are brackets without end
        return text


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> None:
    """Set `section.key=value` pairs in the tree, in place.

    `objective[0].weight` and `objective.0.weight` reach into a list, and so does the ROI that an entry is about, with its kind where there
    are several: `objective.PTV.weight`, `objective.PTV.min_dose.weight`.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = [part for part in re.split(r"[.\[\]]", key.strip()) if part]
        if not equals or not parts:
            raise InputError(f"--set {override}: write section.key=value, e.g. --set optimizer.max_iterations=100")
        parts, node = _numbered(data, parts, override), data
        for i, part in enumerate(parts):
            at: Any = part
            where, last = ".".join(parts[:i]) or "the case", i == len(parts) - 1
            if isinstance(node, list):
                if not (part.isascii() and part.isdigit()) or len(part) > 9 or int(part) >= len(node):
                    raise InputError(f"--set {override}: {where} is a list of {len(node)}, counted from 0; it has no '{part}'")
                at = int(part)
            elif not isinstance(node, dict):
                raise InputError(f"--set {override}: {where} is a value, it has no keys")
            if last:
                node[at] = _value(text.strip())
            else:
                node = node[at] if isinstance(node, list) else node.setdefault(at, {})


def _numbered(data: Mapping[str, Any], parts: list[str], override: str) -> list[str]:
    """An override's key with the number of a list's entry in the place of its ROI, and its kind."""
    entries = data.get(parts[0])
    if len(parts) < 3 or not isinstance(entries, list) or parts[1].isdigit():
        return parts
    about = [i for i, entry in enumerate(entries) if isinstance(entry, dict) and entry.get("roi") == parts[1]]
    kinds = {str(entries[i].get("kind", entries[i].get("metric"))): i for i in about}
    if len(about) > 1 and len(parts) > 3 and parts[2] in kinds:
        return [parts[0], str(kinds[parts[2]]), *parts[3:]]
    if len(about) > 1:
        raise InputError(
            f"--set {override}: {len(about)} entries of [[{parts[0]}]] are about '{parts[1]}'; say which, by kind or number: "
            + ", ".join(f"{parts[0]}.{parts[1]}.{kind} = {parts[0]}[{i}]" for kind, i in kinds.items())
        )
    return [parts[0], str(about[0]), *parts[2:]] if about else parts


def values_of(text: str) -> list[Any]:
    """A list of values as TOML reads `[text]`; what is no TOML is cut at commas, but within quotes and brackets: names need no quotes."""
    found = _value(f"[{text}]")
    if isinstance(found, list):
        return found
    return [_value(part.strip()) for part in re.findall(r'(?:\[[^\]]*\]|"[^"]*"|[^,])+', text) if part.strip()]


def _dotted(location: tuple[int | str, ...]) -> str:
    """`("beam", 0, "gantry_deg")` as `beam[0].gantry_deg`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _section(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that holds the last key of a location."""
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            candidates = [model.model_fields[part].annotation]
            while candidates:
                kind = candidates.pop()
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    model = kind
                    break
                candidates.extend(get_args(kind))
    return model


def _unknown(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """What to say about a key that is none: what is allowed there, the nearest, and the section where it would be right."""
    key, allowed = str(location[-1]), list(_section(model, location).model_fields)
    elsewhere = [name for name in model.model_fields if key in _section(model, (name, key)).model_fields and name != key]
    hint = nearest(key, allowed) or (f" (it belongs in [{elsewhere[0]}])" if elsewhere else "")
    inside = f"in [{_dotted(location[:-1])}]" if len(location) > 1 else "at the top level"
    return f"unknown key '{_dotted(location)}'{hint}; allowed {inside}: {', '.join(allowed)}"


def _choices(annotation: Any) -> list[str]:
    """The values of a `Literal` or a `OneOf`, also inside `X | None`."""
    if isinstance(annotation, OneOf):
        return list(annotation.names)
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def choices(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The names that a key takes, empty where it takes no names: `choices(Case, ("optimizer", "method"))`."""
    field = _section(model, location).model_fields.get(str(location[-1])) if location else None
    return [choice for part in (field.annotation, *field.metadata) for choice in _choices(part)] if field is not None else []


def _takes_path(annotation: Any) -> bool:
    return annotation is Path or any(_takes_path(part) for part in get_args(annotation))


def resolve_paths(data: dict[str, Any], model: type[BaseModel], folder: Path) -> None:
    """Make relative paths in the tree's sections start at `folder`, in place: the values of keys that are declared as paths."""
    for name, section in data.items():
        if not isinstance(section, dict):
            continue
        for key, field in _section(model, (name, "")).model_fields.items():
            if isinstance(section.get(key), str) and section[key] and _takes_path(field.annotation):
                section[key] = str(full_path(section[key], folder))


def describe(error: ValidationError, model: type[BaseModel], label: str) -> str:
    """One line for the user: the file, the key, what is allowed, what was found, the nearest match."""
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    location, found, kind = first["loc"], first["input"], first["type"]
    field = _section(model, location).model_fields.get(str(location[-1])) if location else None
    names, name = choices(model, location), _dotted(location)
    if kind == "extra_forbidden":
        text = _unknown(model, location)
    elif kind == "missing":
        about = (field.description or "").rstrip(".") if field is not None else ""
        about = about[:1].lower() + about[1:] if about[1:2].islower() else about
        options = f"; one of {', '.join(names)}" if names else ""
        text = f"'{name}' is missing ({about}{options})"
    elif kind == "literal_error":
        text = f"{name} must be one of {', '.join(names)}, got {short(found)}{nearest(str(found), names)}"
    elif kind == "value_error":
        text = f"{name}: {first['ctx']['error']}" if name else str(first["ctx"]["error"])
    elif kind == "list_type" and isinstance(found, Mapping):
        text = f"[{name}] is written with double brackets, [[{name}]], as there may be several"
    elif kind in ("model_type", "model_attributes_type"):
        text = f"{name} must be a section with keys, got {short(found)}"
    else:
        text = f"{name} {first['msg'].replace('Input should be', 'must be')}, got {short(found)}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{label}: {text}{more}"


def scalar(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(scalar(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {scalar(item)}' for key, item in value.items() if item is not None)}}}"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def dump_toml(data: Mapping[str, Any]) -> str:
    """A tree of scalars, lists of scalars, sections and lists of sections as TOML, with inline tables for sections of sections; None is
    left out, as TOML has no such value.
    """
    lines, sections = [], []
    for key, value in data.items():
        tables = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(value, Mapping) or (tables and all(isinstance(table, Mapping) for table in tables)):
            header = f"[{key}]" if isinstance(value, Mapping) else f"[[{key}]]"
            for table in tables:
                rows = [f"{name} = {scalar(item)}" for name, item in table.items() if item is not None]
                sections.append("\n".join([header, *rows]))
        elif value is not None and tables:
            lines.append(f"{key} = {scalar(value)}")
    return "\n\n".join(["\n".join(lines), *sections]).strip("\n") + "\n"
