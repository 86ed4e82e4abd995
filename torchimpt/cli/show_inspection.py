"""`torchimpt inspect` on the terminal, and its case file."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from torchimpt.case import load_case
from torchimpt.checks import InputError, one_line
from torchimpt.cli.show import console
from torchimpt.cli.streams import printing
from torchimpt.files import whole_or_nothing
from torchimpt.inspection import Inspection, Section

LEFT = ("ROI", "Type", "Role", "CT series", "Patient", "Position", "UID", "Beam", "Radiation", "Range shifter", "Kind", "Sum", "File")
"""Columns of words; others hold numbers, and are aligned to the right."""


def show_inspection(found: Inspection, path: Path, written: Path | None) -> None:
    """Every section, and the proposal."""
    with printing():
        out = console()
        for section in found.sections:
            out.print(Text(one_line(section.title), style="bold"), soft_wrap=True)
            if section.rows:
                out.print(_table(section), soft_wrap=True)
            for remark in section.remarks:
                out.print(f"  {one_line(remark)}", soft_wrap=True)
            out.print()
        if found.proposal is None:
            out.print(f"No case file is proposed: {one_line(found.reason)}", soft_wrap=True)
            return
        out.print(Text("Proposed case", style="bold"))
        for remark in found.proposal.remarks:
            out.print(f"  {one_line(remark)}", soft_wrap=True)
        if written is None:
            out.print(f"  To have it: torchimpt inspect {path} --case CASE.toml", soft_wrap=True)
        else:
            out.print(f"  Wrote {written}. Next: torchimpt plan {written} --out runs/{written.stem}", soft_wrap=True)


def _table(section: Section) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in section.columns:
        table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
    for row in section.rows:
        table.add_row(*map(one_line, row))
    return table


def write_proposal(found: Inspection, path: Path) -> Path:
    """Write the proposed case file, which must load, and return its path; an existing file is never replaced."""
    if found.proposal is None:
        raise InputError(f"no case file can be proposed: {found.reason}")
    if path.suffix != ".toml":
        raise InputError(f"cannot write the case {path}: the name must end in .toml")
    if path.exists():
        raise InputError(f"{path} exists already; give another name, or take it away first")
    with whole_or_nothing(path) as scratch:
        scratch.write_text(found.proposal.text, encoding="utf-8")
        load_case(scratch)
    return path
