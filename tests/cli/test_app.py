"""The command line: exit statuses, one line for a wrong input, and a case file that runs as it was written."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from torchimpt.case import load_case
from torchimpt.cli.app import main
from torchimpt.cli.logs import set_up
from torchimpt.cli.show import show_run
from torchimpt.dose.engines import NAMES as ENGINE_NAMES
from torchimpt.dose.models import MODELS
from torchimpt.io.patient import SOURCES
from torchimpt.machine import READERS, generic
from torchimpt.objectives import KINDS, MODES, Sum
from torchimpt.optim import METHODS
from torchimpt.phantoms import phantom
from torchimpt.schemes.schemes import SCHEMES


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in a folder of its own; returns exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["torchimpt", *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(run, arguments):
    status, out, err = run(*arguments)
    assert status == 0 and err == ""
    for command in ("plan", "dose", "evaluate", "compare", "watch", "export", "new"):
        assert f"\n  {command} " in out


@pytest.mark.parametrize("command", ["plan", "dose", "evaluate"])
def test_common_flags(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    for flag in ("--device", "--threads", "--dtype", "--seed", "--set", "--quiet", "--verbose"):
        assert flag in out


def test_bash_completes_commands_and_options():
    """By bash itself, with what `--show-completion` tells it."""
    if not (bash := shutil.which("bash")):
        pytest.skip("there is no bash on this machine")
    program = Path(sys.executable).with_name("torchimpt")
    if not program.exists():
        pytest.skip("the program torchimpt is not installed beside this Python")
    script = (
        'eval "$("$0" --show-completion bash)"\nCOMP_WORDS=("$0" "$@"); COMP_CWORD=$#; _torchimpt_completion "$0"; echo "${COMPREPLY[@]}"'
    )
    for words, expected in ((["swe"], "sweep"), (["plan", "--dev"], "--device")):
        found = subprocess.run([bash, "-c", script, str(program), *words], capture_output=True, text=True, check=True)
        assert found.stdout.split() == [expected]


def test_help_imports_nothing_heavy():
    code = "import sys, torchimpt.cli.app as a\ntry: a.main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("torchimpt ") and done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pan"], "No such command 'pan'"),
        (["plan"], "Missing argument"),
        (["plan", "none.toml", "--out", "r"], "no case file at none.toml"),
        (["plan", "case.toml", "--out", "r", "--device", "gpu"], "'cpu', 'cuda', 'auto'"),
        (["plan", "case.toml", "--out", "r", "--set", "dose.cutof=3"], "unknown key 'dose.cutof' (did you mean 'cutoff_sigma'?)"),
        (["plan", "case.toml", "--out", "r", "--set", "patient.path=nowhere"], "no such file or folder"),
        (["evaluate", ".."], "has no case.toml"),
        (["compare", "r"], "two or more run folders"),
        (["new", "case"], "case.toml exists already"),
        (["new", "no/where"], "no folder no"),
        (["new", ""], "cannot name a case"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(run, arguments, message):
    run("new", "case")
    status, out, err = run(*arguments)
    assert status == 2 and out == "" and message in err and err.startswith("torchimpt: ") and err.count("\n") == 1


def test_new_case_loads_and_names_rois_of_its_phantom(run, tmp_path):
    status, out, _ = run("new", "my case")
    assert status == 0 and "torchimpt plan" in out
    case = load_case(tmp_path / "my case.toml")
    assert (
        case.title == "my case" and len(case.beams(generic().shifter)) == 3 and len(case.scenarios()) == 9 and case.prescription() == 70.0
    )
    case.check_plan()
    case.check_rois(phantom(case.patient.name).rois)


def test_new_case_names_what_is_registered(run, tmp_path, monkeypatch):
    """Lists in the template's comments are those of the registries."""
    monkeypatch.setitem(MODES, "another", Sum)
    run("new", "case")
    text = (tmp_path / "case.toml").read_text()
    for names in (SOURCES, READERS, MODELS, METHODS, SCHEMES, MODES, KINDS, ENGINE_NAMES):
        assert " | ".join(names) in text
    assert "float32 | float64\n" in text and "{" not in text


def test_new_case_with_every_commented_key_loads(run, tmp_path):
    """What the template says in comments is right too."""
    run("new", "case")
    (tmp_path / "case.toml").rename(tmp_path / "my_machine")
    lines = (tmp_path / "my_machine").read_text().splitlines()
    keys = [
        line[2:] if line.startswith("# ") and (" = " in line or line[2] == "[") and not line.startswith('# path = "pt') else line
        for line in lines
    ]
    text = "\n".join(keys).replace('name = "generic"', "").replace("hu_to_rsp.csv", "my_machine")
    (tmp_path / "all.toml").write_text(text)
    case = load_case(tmp_path / "all.toml")
    assert case.machine.format == "csv" and case.dose.grid_mm == 3.0 and case.output.scenarios_dose and not case.optimizer.normalize
    assert case.joint.spots == 800


def test_interrupt_is_130(monkeypatch, run):
    monkeypatch.setattr("torchimpt.cli.template.write_case", lambda name: (_ for _ in ()).throw(KeyboardInterrupt))
    status, _, err = run("new", "x")
    assert status == 130 and err.strip() == "torchimpt: interrupted"


def test_summary_of_a_run(capsys, tmp_path):
    (tmp_path / "report.html").write_text("")
    goal = {
        "roi": "CTV",
        "metric": "d(95)",
        "unit": "Gy",
        "limit": "≥ 66.5 Gy",
        "nominal": 68.0,
        "worst": 66.0,
        "worst_scenario": "range+3%",
    }
    metrics = {
        "title": "A case",
        "goals": [goal | {"passed": False}],
        "converged": True,
        "stop_reason": "converged: done",
        "iterations": 120,
        "evaluations": 130,
        "objective": {"initial": 1e5, "final": 12.5},
        "spots": {"nonzero": 900, "count": 1200, "energy_layers": 40},
        "delivery": {"seconds": 95.0},
        "time_s": {"total": 61.0},
    }
    show_run(metrics, tmp_path)
    out = capsys.readouterr().out
    for text in (
        "range+3% is more stopping power, shorter range.",
        "A case",
        "D95 ≥ 66.5 Gy",
        "68.0",
        "66.0",
        "range+3%",
        "not met",
        "100,000 to 12.5",
        "900 of 1,200 spots in 40 layers\n",
        "Delivery 95 s a fraction\n",
        "61 s",
        "report.html",
    ):
        assert text in out
    regions = {"CTV": {"d95_gy": 68.0, "d2_gy": 71.0, "mean_gy": 70.0, "max_gy": 72.0}}
    show_run({"title": "", "scenarios": [{"name": "nominal", "rois": regions}]}, tmp_path)
    assert "68.00" in capsys.readouterr().out


def test_summary_of_a_run_whose_spots_moved(capsys, tmp_path):
    spots = {"placed": 5000, "count": 1200, "nonzero": 900, "energy_layers": 40, "moved_mm": {"mean": 2.5, "max": 12.0}}
    delivery = {"seconds": 95.0, "energy_switch_s": 70.0, "beam_on_s": 22.0, "spot_s": 2.0, "scan_s": 1.0}
    show_run({"title": "", "spots": spots, "delivery": delivery}, tmp_path)
    out = capsys.readouterr().out
    moved = "they moved 2.50 mm on average, 12.00 mm at most"
    assert f"5,000 spots placed, 1,200 kept, 900 delivered in 40 layers; {moved}\n" in out
    assert "Delivery 95 s a fraction: energy switching 70 s, beam on 22 s, spots and scanning 3.0 s\n" in out


@pytest.mark.parametrize(
    ("category", "quiet", "told"),
    [
        (UserWarning, False, "torchimpt: the table ends at 3000 HU\n"),
        (UserWarning, True, ""),
        (DeprecationWarning, False, ""),  # what a library will call otherwise one day is no news to a user
    ],
)
def test_warnings_are_one_line_on_stderr(capsys, category, quiet, told):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        set_up(quiet=quiet, verbose=False)
        warnings.warn("the table ends at 3000 HU", category, stacklevel=1)
    assert capsys.readouterr().err == told
