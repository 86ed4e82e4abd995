"""Errors are one line, whatever they quote."""

from __future__ import annotations

import subprocess
import sys

import pytest

from torchimpt.checks import InputError, is_plain, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x00\x1b[31m\x7f\x85", r"\x00\x1b[31m\x7f\x85"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\udcff", r"\udcff"),
        ("\u202eevil", r"\u202eevil"),
    ],
)
def test_control_characters_are_shown_as_escapes(text, shown):
    assert not is_plain(text) and one_line(text) == shown and str(InputError(f"no ROI '{text}'")) == f"no ROI '{shown}'"


@pytest.mark.parametrize("text", ["PTV 70", "靶区", "été °≥ \u00a0", "🎯", "", r"\n"])
def test_other_text_stays(text):
    assert is_plain(text) and one_line(text) == text


def test_errors_need_no_torch():
    """The program's border knows them before anything heavy is imported."""
    code = "import sys, torchimpt.cli.start; assert not {'torch', 'numpy', 'typer', 'rich'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
