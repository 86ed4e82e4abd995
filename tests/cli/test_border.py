"""The border of the program: streams that are closed, full or gone, terminals without Unicode, Ctrl-C within an import, folders of others."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys

import pytest

from torchimpt.checks import InputError
from torchimpt.cli.border import run as run_command_line
from torchimpt.cli.show import show_comparison
from torchimpt.cli.streams import discard, set_up_streams
from torchimpt.report.compare import Row

PROGRAM = f"{sys.executable} -c 'from torchimpt.cli.start import main; main()'"

ROWS = [Row("Goals", "D95 ≥ 47.5 Gy", ["47.1, worst – ✕", "48 ✓"], [1])]

# All commands print through the same two places; these need no torch, which takes seconds to import.
HELP, WRONG = "--help", "evaluate"


def shell(line: str, cwd, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "told"),
    [
        (">&-", True),
        ("2>&-", False),
        (">&- 2>&-", False),
        ("<&- >&- 2>&-", False),
        ("2>/dev/full", False),
        ("| true", True),
        ("2>&1 | true", False),
    ],
)
def test_streams_that_are_closed_full_or_gone(tmp_path, streams, told):
    for arguments, status in ((HELP, 0), (WRONG, 2)):
        done = shell(f"set -o pipefail; {PROGRAM} {arguments} {streams}", tmp_path)
        assert done.returncode == status, (arguments, done)
        lines = done.stderr.splitlines()
        assert len(lines) == (status == 2 and told) and all(line.startswith("torchimpt: ") for line in lines), (arguments, done)


@pytest.mark.slow
def test_what_is_meant_for_the_terminal_is_in_no_file(tmp_path):
    """A closed descriptor would be the next file's, and the case file would hold what `new` prints."""
    assert shell(f"{PROGRAM} new case >&- 2>&-", tmp_path).returncode == 0
    text = (tmp_path / "case.toml").read_text()
    assert text.startswith("#") and "Wrote" not in text and not any(line.startswith("torchimpt:") for line in text.splitlines())


@pytest.mark.slow
def test_a_full_disk_behind_stdout_is_told(tmp_path):
    for arguments in (HELP, "plan --help", "--version"):
        done = shell(f"(ulimit -f 0; {PROGRAM} {arguments} > told)", tmp_path, PYTHONDONTWRITEBYTECODE="1")
        assert done.returncode == 2 and done.stderr == "torchimpt: stdout: File too large\n", (arguments, done)


def test_results_that_stdout_does_not_take_are_in_their_files(tmp_path, monkeypatch, full_disk):
    with (tmp_path / "told").open("w") as told:
        monkeypatch.setattr(sys, "stdout", told)
        with full_disk(0), pytest.raises(InputError, match=r"^cannot write to stdout: File too large; what was computed is in its files$"):
            show_comparison(["a", "b"], ROWS, "page.html")
    assert (tmp_path / "told").read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_an_ascii_terminal(tmp_path, env):
    (tmp_path / "été").mkdir()
    (tmp_path / "été" / "case.toml").write_text("[patient]\nsource = 'image'\npath = 'nowhere'\n")
    done = shell(f"cd été; {PROGRAM} plan case.toml --out run", tmp_path, **env)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.isascii() and done.stderr.count("\n") == 1
    known = "PYTHONIOENCODING" in env
    assert done.stderr.startswith("torchimpt: case.toml: patient.path: no such" if known else "torchimpt: a file's or folder's name is not")
    assert ("\\xe9t\\xe9/nowhere" if known else "\\udcc3\\udca9t") in done.stderr


def test_our_own_signs_in_ascii(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    set_up_streams()
    show_comparison(["a", "靶"], ROWS, "página.html")
    sys.stdout.flush()
    text = raw.getvalue().decode("ascii")
    assert "D95 >= 47.5 Gy" in text and "47.1, worst - no" in text and "48 yes" in text and "\\u9776" in text and "p\\xe1gina.html" in text


def test_a_stream_without_a_file_is_left_alone():
    text = io.StringIO()
    discard(text)
    text.write("still there")
    assert text.getvalue() == "still there"


@pytest.mark.slow
def test_an_argument_that_is_no_text(tmp_path):
    for argument in ("--out $'\\xff'", "--set title=$'\\xff'"):
        done = shell(f"{PROGRAM} plan case.toml {argument}", tmp_path)
        assert done.returncode == 2 and re.fullmatch(r"torchimpt: an argument is not text in UTF-8: .*\\udcff.*\n", done.stderr), done


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored for what runs in the background
class Finder:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
from torchimpt.cli.start import main
module = sys.argv.pop(1)
sys.meta_path.insert(0, Finder())
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["typer", "torchimpt.case", "pydantic", "torch", "numba", "numpy", "rich", "torchimpt.runs.commands"])
def test_an_interrupt_within_an_import(tmp_path, module):
    """Ctrl-C in the second that the imports take: some of them turn it into errors of their own."""
    arguments = [sys.executable, "-c", INTERRUPTED, module, "plan", "case.toml", "--out", "run"]
    (tmp_path / "case.toml").write_text("[patient]\nsource = 'phantom'\nname = 'water'\n")
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "torchimpt: interrupted\n")
    assert os.listdir(tmp_path) == ["case.toml"]


def test_what_nobody_foresaw_is_one_line(monkeypatch, capsys):
    def load():
        raise ZeroDivisionError("by\nnothing")

    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it
    for arguments, traceback in ((["new", "x"], False), (["plan", "x", "--verbose"], True)):
        monkeypatch.setattr(sys, "argv", ["torchimpt", *arguments])
        with pytest.raises(SystemExit) as stop:
            run_command_line(load)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and ("Traceback" in err) == traceback
        last = err.splitlines()[-1]
        assert last.startswith(r"torchimpt: this should not happen: ZeroDivisionError: by\nnothing (") and "--verbose shows more" in last
    assert signal.getsignal(signal.SIGINT) is before


def test_out_of_memory_says_what_to_do(monkeypatch, capsys):
    def load():
        raise MemoryError

    monkeypatch.setattr(sys, "argv", ["torchimpt", "--help"])
    with pytest.raises(SystemExit):
        run_command_line(load)
    assert capsys.readouterr().err.startswith("torchimpt: out of memory; use a coarser dose.grid_mm")


def test_no_folder_for_compiled_code(monkeypatch, capsys):
    def load():
        raise RuntimeError("cannot cache function '_slab': no locator available for file 'siddon.py'")

    monkeypatch.setattr(sys, "argv", ["torchimpt", "--help"])
    with pytest.raises(SystemExit):
        run_command_line(load)
    assert "set NUMBA_CACHE_DIR to a folder that can be written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_that_is_not_ours(common_folder):
    folder = common_folder / "others"
    folder.mkdir()
    folder.chmod(0o555)
    drop = "setpriv --reuid 65534 --regid 65534 --clear-groups " if os.getuid() == 0 else ""
    own = {"NUMBA_CACHE_DIR": str(common_folder / "numba"), "MPLCONFIGDIR": str(common_folder / "numba"), "PYTHONDONTWRITEBYTECODE": "1"}
    (common_folder / "numba").mkdir()
    (common_folder / "numba").chmod(0o777)
    if shell(f"{drop}{sys.executable} -c 'import torchimpt'", common_folder, **own).returncode:
        pytest.skip("another user may not enter this checkout: as whom the test would run the program")
    done = shell(f"cd {folder} && {drop}{PROGRAM} new case", common_folder, **own)
    assert done.returncode == 2 and done.stderr == (
        "torchimpt: cannot write case.toml: Permission denied; choose another folder, or make room and set its permissions\n"
    )
