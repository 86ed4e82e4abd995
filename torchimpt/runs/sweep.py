"""Sweeps: many plans of one case file, whose keys take every combination of some values; each a run folder, all in one table.

A sweep is what its folder says: which runs are finished is told by their `metrics.json`, so that it goes on where it was interrupted, and
parts of it (`--shard`) may run anywhere that sees the folder. Members with the same geometry share doses and matrices, and are planned in
lockstep, some at a time: their products are done together. So a member's plan is that of `torchimpt plan` but for rounding, and to the last
bit the same in any company.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from torchimpt.case import Case, load_case
from torchimpt.case.text import scalar, values_of
from torchimpt.checks import InputError
from torchimpt.planning.shared import SharedDoses, geometry
from torchimpt.runs.commands import run_plan
from torchimpt.runs.folder import write_text
from torchimpt.runs.sweep_table import Row, read_keys, short_keys, write_table
from torchimpt.schemes.lockstep import Lockstep
from torchimpt.watch import Progress

log = logging.getLogger(__name__)

TOGETHER = 8
"""Members in lockstep at a time: their products are three times as fast as one by one (`benchmarks/columns.py`), and what each has of its
own, doses and the matrices of voxels that only it samples, is less than what they share."""

MOST = 10_000
"""More members than this are a slip of the keyboard."""


@dataclass(frozen=True)
class Member:
    """One plan of a sweep.

    Attributes
    ----------
    name
        Its run folder's, from what is its own: `spacing_mm=5,weight=100`.
    values
        By key.
    case
        None where the values make no case; `error` says why.
    """

    name: str
    values: Mapping[str, Any]
    case: Case | None
    error: str = ""


def parse_over(overs: Sequence[str]) -> dict[str, list[Any]]:
    """`key=v1,v2` arguments as lists by key; values as TOML has them, or names without quotes."""
    found: dict[str, list[Any]] = {}
    for over in overs:
        key, equals, text = over.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"--over {over}: write key=v1,v2,..., e.g. --over spots.spacing_mm=5,7")
        if key in found:
            raise InputError(f"--over {over}: the key {key} is there twice; give all its values at once")
        values = values_of(text)
        if not values:
            raise InputError(f"--over {over}: there is no value; write key=v1,v2,...")
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise InputError(f"--over {over}: the value {scalar(twice[0])} is there twice")
        found[key] = values
    if not found:
        raise InputError("a sweep needs at least one --over key=v1,v2,...")
    return found


def parse_shard(text: str | None) -> tuple[int, int]:
    """`i/n` as two numbers, i from 1 to n; all is 1/1."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text or "1/1")
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard {text}: write i/n, part i of n, counted from 1, e.g. --shard 1/4")
    return int(match[1]), int(match[2])


def members(case_file: Path, overrides: Sequence[str], over: Mapping[str, Sequence[Any]]) -> list[Member]:
    """Every combination of the values, those with the same geometry next to each other; a value that makes no case is its member's error,
    unless every member has one: then the sweep is wrong.
    """
    count = 1
    for values in over.values():
        count *= len(values)
    if count > MOST:
        raise InputError(f"the sweep would have {count:,} members, more than {MOST:,}; give fewer values")
    names = short_keys(list(over))
    found = []
    for combination in itertools.product(*over.values()):
        own = dict(zip(over, combination, strict=True))
        name = ",".join(f"{names[key]}={_plain(value)}" for key, value in own.items())
        try:
            found.append(Member(name, own, load_case(case_file, [*overrides, *(f"{key}={scalar(value)}" for key, value in own.items())])))
        except InputError as error:
            found.append(Member(name, own, None, str(error)))
    wrong = [member for member in found if member.case is None]
    if len(wrong) == len(found):
        raise InputError(wrong[0].error)
    same = [name for i, name in enumerate(m.name for m in found) if name in [m.name for m in found[:i]]]
    if same:
        raise InputError(f"two members of the sweep would share the folder {same[0]}; give values that differ in letters or digits")
    groups = list(dict.fromkeys(geometry(member.case) for member in found if member.case is not None))
    return sorted(found, key=lambda member: len(groups) if member.case is None else groups.index(geometry(member.case)))


def _plain(value: Any) -> str:
    """A value as part of a folder's name; of a path its end."""
    text = value if isinstance(value, str) else scalar(value)
    text = re.sub(r"[^\w.+-]+", "_", text.rstrip("/").rpartition("/")[2]).strip("_")
    return text[:60] or "none"


def part_of(every: Sequence[Member], part: int, parts: int) -> Sequence[Member]:
    """Part `part` of `parts`, from 1: a stretch, so that members which share matrices stay together."""
    return every[(part - 1) * len(every) // parts : part * len(every) // parts]


def run_sweep(
    case_file: Path,
    out: Path,
    over: Mapping[str, Sequence[Any]],
    *,
    overrides: Sequence[str] = (),
    shard: tuple[int, int] = (1, 1),
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Plan this shard's members that are not finished, and return the table of all.

    A member that fails is a row that says why, and the next one goes on; an interrupt goes up, and the table is written.

    Parameters
    ----------
    case_file, overrides
        The case that the members are made from, as `load_case` takes it.
    out
        The sweep's folder: a run folder for each member, `sweep.csv`, `sweep.json`.
    over
        Values by key.
    shard
        Part i of n, from 1 (`part_of`).
    device, threads
        As of `run_plan`.
    """
    progress, out = progress or Progress(enabled=False), Path(out)
    every = members(Path(case_file), overrides, over)
    _check_folder(out, list(over), every)
    mine = part_of(every, *shard)
    told = [(member.name, member.values) for member in every]
    write_table(out, told, list(over))  # the folder is this sweep's from now on
    try:
        with progress.stage(f"Sweep, {len(mine)} of {len(every)} members", total=len(mine)) as stage:
            for group in _groups(mine):
                stage.note(", ".join(member.name for member in group))
                _run_together(group, out, device, threads or torch.get_num_threads())
                stage.advance(len(group))
    finally:
        rows = write_table(out, told, list(over))
    return rows


def _groups(mine: Sequence[Member]) -> list[list[Member]]:
    """Members of one geometry next to each other, `TOGETHER` at most."""
    found: list[list[Member]] = []
    for _, same in itertools.groupby(mine, key=lambda member: None if member.case is None else geometry(member.case)):
        one = list(same)
        found += [one[i : i + TOGETHER] for i in range(0, len(one), TOGETHER)]
    return found


def _run_together(group: Sequence[Member], out: Path, device: str, threads: int) -> None:
    """Plan those of a group that are not finished, on the same doses."""
    lockstep = Lockstep()
    shared = SharedDoses(lockstep)
    left = [member for member in group if not (out / member.name / "metrics.json").is_file()]
    for result in lockstep.run([partial(_run, member, out, shared, device, threads) for member in left]):
        if isinstance(result, Exception):
            raise result


def _run(member: Member, out: Path, shared: SharedDoses, device: str, threads: int) -> None:
    """Plan one member; an error is left in a file beside its folder."""
    folder, failed = out / member.name, out / f"{member.name}.error.txt"
    error = member.error
    if member.case is not None:
        going_on = (folder / "checkpoint.pt").is_file()
        parameters = {key: value if isinstance(value, (bool, int, float, str)) else scalar(value) for key, value in member.values.items()}
        options: dict[str, Any] = {"device": device, "threads": threads, "shared": shared, "parameters": parameters}
        try:
            try:
                run_plan(member.case, folder, resume=going_on, **options)
            except InputError as why:
                if not going_on:
                    raise
                log.warning("%s starts again: %s", member.name, why)
                run_plan(member.case, folder, **options)
            failed.unlink(missing_ok=True)
            return
        except Exception as why:  # whatever it is, it is this member's
            error = str(why) if isinstance(why, InputError) else f"{type(why).__name__}: {why}"
    log.warning("%s: %s", member.name, error)
    write_text(failed, error + "\n")


def _check_folder(out: Path, keys: list[str], every: Sequence[Member]) -> None:
    """Raise where the folder is of another sweep, or of something else, or its runs are of another case."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the sweep")
    before = read_keys(out)
    if before is None and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is no sweep's folder, and not empty; choose another --out")
    if before is not None and before != keys:
        raise InputError(f"{out} is of another sweep, over {', '.join(before)}; choose another --out")
    for member in every:
        path = out / member.name / "case.toml"
        if member.case is None or not path.is_file():
            continue
        then, now = path.read_text(encoding="utf-8").splitlines(), member.case.to_toml().splitlines()
        if then != now:
            pairs = itertools.zip_longest(then, now, fillvalue="nothing")
            old, new = next((a, b) for a, b in pairs if a != b)
            raise InputError(f"{path.parent} was planned from another case ({old}; now {new}); choose another --out, or take it away")
