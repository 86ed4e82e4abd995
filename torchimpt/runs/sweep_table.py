"""The table of a sweep: a row a member, from what its run folder holds."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from torchimpt.case.text import scalar
from torchimpt.checks import InputError
from torchimpt.files import reading
from torchimpt.runs.folder import write_json, write_text

TABLE, CSV = "sweep.json", "sweep.csv"

Row = Mapping[str, Any]
"""`name`; `values` by key; `status`: `done`, `not converged`, `failed` or `open`; `error` of a failed one. Of a finished one `objective`,
`iterations`, `spots`, `delivery_s`, `total_s`, `peak_memory_bytes`, and `goals` with `roi`, `metric`, `nominal`, `worst`, `passed`."""


def read_keys(out: Path) -> list[str] | None:
    """The keys of the sweep that a folder is of; None where it is of none."""
    path = out / TABLE
    if not path.is_file():
        return None
    with reading(path, "sweep"):
        return [str(key) for key in json.loads(path.read_text(encoding="utf-8"))["over"]]


def _row(out: Path, name: str, values: Mapping[str, Any]) -> Row:
    """A member's row."""
    row: dict[str, Any] = {"name": name, "values": dict(values)}
    metrics, failed = out / name / "metrics.json", out / f"{name}.error.txt"
    if not metrics.is_file():
        told = failed.read_text(encoding="utf-8").strip() if failed.is_file() else ""
        return {**row, "status": "failed", "error": told} if told else {**row, "status": "open"}
    with reading(metrics, "metrics"):
        found = json.loads(metrics.read_text(encoding="utf-8"))
        goals = [{key: goal[key] for key in ("roi", "metric", "nominal", "worst", "passed")} for goal in found["goals"]]
        return {
            **row, "status": "done" if found["converged"] else "not converged", "objective": found["objective"]["final"],
            "iterations": found["iterations"], "spots": found["spots"]["nonzero"], "delivery_s": found["delivery"]["seconds"],
            "total_s": found["time_s"]["total"], "peak_memory_bytes": found["peak_memory_bytes"], "goals": goals,
        }  # fmt: skip


def write_table(out: Path, members: Sequence[tuple[str, Mapping[str, Any]]], keys: Sequence[str]) -> list[Row]:
    """Read what is there, write `sweep.json` and `sweep.csv`, and return the rows."""
    rows = [_row(out, name, values) for name, values in members]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / TABLE, {"over": list(keys), "members": rows})
    except OSError as error:
        raise InputError(f"cannot write the sweep's folder {out}: {error.strerror}; choose another --out") from error
    lines = StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["name", *keys, *columns(rows)])
    for row in rows:
        cells = [cell if cell is not None else "" for cell in cells_of(row, rows)]
        writer.writerow([row["name"], *(value if isinstance(value, str) else scalar(value) for value in row["values"].values()), *cells])
    write_text(out / CSV, lines.getvalue())
    return rows


PLAIN = ("status", "objective", "iterations", "spots", "delivery_s", "total_s")


def _goals(row: Row) -> dict[str, float]:
    return {f"{goal['roi']} {goal['metric']}, worst": goal["worst"] for goal in row.get("goals", ())}


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key where that tells it from the others, else the whole."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def columns(rows: Sequence[Row]) -> list[str]:
    """Titles of what is told of each member behind its values: how it ended, and every goal in its worst scenario."""
    return [*PLAIN, *dict.fromkeys(title for row in rows for title in _goals(row))]


def cells_of(row: Row, rows: Sequence[Row]) -> list[Any]:
    """A row's cells in the order of `columns`; None where there is nothing yet."""
    known = {**row, **_goals(row)}
    return [known.get(title) for title in columns(rows)]
