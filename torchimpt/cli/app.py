"""The command line: commands parse, call and print; what they do is elsewhere.

Nothing heavy is imported before a command runs, so that `torchimpt --help` answers at once. Exit status: 0 done; 2 the input is wrong;
3 the solver stopped short of its tolerance (outputs are written); 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from torchimpt.cli.border import run as run_command_line
from torchimpt.cli.streams import follows, printing

if TYPE_CHECKING:  # what the commands need is imported when one is called: `--help` is there at once
    from torchimpt.case import Case
    from torchimpt.watch import Progress

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from torchimpt.version import __version__

        typer.echo(f"torchimpt {__version__}")
        raise typer.Exit()


TOGETHER = ("plan", "dose", "evaluate")
"""Commands that several processes do together, as `torchrun` starts them; of any other the first process does all."""


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Proton therapy planning: differentiable dose, fast robust optimization."""
    if follows() and context.invoked_subcommand not in TOGETHER:
        raise typer.Exit()


CaseFile = Annotated[Path, typer.Argument(metavar="CASE.toml", help="The case file; `torchimpt new NAME` writes one.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Out = Annotated[Path, typer.Option("--out", metavar="RUN", help="The run folder to write.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="section.key=value", help="Set any key of the case file; repeatable.")]
Device = Annotated[
    Literal["cpu", "cuda", "auto"],
    typer.Option("--device", help="Where to compute; auto: a GPU where there is one, with the CPU for what does not fit."),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="CPU threads; omitted: one a core.")]
Dtype = Annotated[Literal["float32", "float64"] | None, typer.Option("--dtype", help="Instead of the case file's dose.dtype.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Instead of the case file's seed.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no warnings on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="The log on stderr, instead of progress bars.")]


def _case(path: Path, overrides: list[str] | None, dtype: str | None, seed: int | None) -> Case:
    """The case file, or that of a run folder, with the command line's overrides, the flags last."""
    from torchimpt.case import load_case

    return load_case(path, [*(overrides or ()), *_flags(dtype, seed)])


def _flags(dtype: str | None, seed: int | None) -> list[str]:
    """The flags that stand for keys, as overrides."""
    return [f"{key}={value}" for key, value in (("dose.dtype", dtype), ("seed", seed)) if value is not None]


def _progress(quiet: bool, verbose: bool) -> Progress:
    """Logging as asked for, and the progress bars that go with it."""
    from torchimpt.cli.logs import set_up
    from torchimpt.watch import Progress

    set_up(quiet=quiet, verbose=verbose)
    return Progress(enabled=False if quiet or verbose else None)


@app.command()
def plan(
    case_file: CaseFile,
    out: Out,
    overrides: Set = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the run folder's checkpoint.pt. With another device, threads or versions the last bits may differ.",
        ),
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    dtype: Dtype = None,
    seed: Seed = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Plan a case: place spots, compute dose, optimize, evaluate, report."""
    progress = _progress(quiet, verbose)

    from torchimpt.cli.show import show_run
    from torchimpt.processes import joined
    from torchimpt.runs.commands import run_plan

    with joined(device) as team:
        case = _case(case_file, overrides, dtype, seed)
        result = run_plan(case, out, device=device, threads=threads, resume=resume, progress=progress, team=team)
    if not team.leads:
        return
    show_run(result.metrics, out)
    if not result.metrics["converged"]:
        raise typer.Exit(3)


@app.command()
def dose(
    case_file: CaseFile,
    plan: Annotated[
        Path,
        typer.Option(
            "--plan", metavar="PLAN", help="plan.json, DICOM RT Ion Plan, .mat of matRad's, or CSV beam,energy_mev,x_mm,y_mm,weight."
        ),
    ],
    out: Out,
    overrides: Set = None,
    device: Device = "auto",
    threads: Threads = None,
    dtype: Dtype = None,
    seed: Seed = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compute the dose of a given plan or spot list on the case's patient and machine; nothing is optimized."""
    progress = _progress(quiet, verbose)

    from torchimpt.cli.show import show_run
    from torchimpt.processes import joined
    from torchimpt.runs.commands import run_dose

    with joined(device) as team:
        case = _case(case_file, overrides, dtype, seed)
        result = run_dose(case, plan, out, device=device, threads=threads, progress=progress, team=team)
    if team.leads:
        show_run(result.metrics, out)


@app.command()
def evaluate(
    run: RunFolder,
    scenarios: Annotated[
        list[str] | None,
        typer.Option(
            "--scenarios",
            metavar="NAMES",
            help="Comma-separated: nominal, x+5mm, range-3.5%, y-2mm/range+3%, boundary(5,3) for the nine of 5 mm and 3 %, "
            "grid21(5,3), grid81(5,3), or random(5,3,100,7): a hundred of seed 7, 5 mm and 3 % being two sigmas. "
            "range+3%: 3 % more stopping power, so a shorter range. Omitted: those planned with.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Where to write; omitted: RUN/evaluation.")] = None,
    overrides: Set = None,
    device: Device = "auto",
    threads: Threads = None,
    dtype: Dtype = None,
    seed: Seed = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate a run in scenarios other than those it was planned with: DVH bands and goals."""
    progress = _progress(quiet, verbose)

    from torchimpt.cli.show import show_run
    from torchimpt.evaluate.scenario_names import parse_scenarios
    from torchimpt.processes import joined
    from torchimpt.runs.commands import run_evaluate
    from torchimpt.runs.folder import EVALUATION

    folder = out if out is not None else run / EVALUATION
    with joined(device) as team:
        case = _case(run, overrides, dtype, seed)
        wanted = parse_scenarios(scenarios) if scenarios else case.scenarios()
        result = run_evaluate(case, run, folder, scenarios=wanted, device=device, threads=threads, progress=progress, team=team)
    if team.leads:
        show_run(result.metrics, folder)


@app.command()
def sweep(
    case_file: CaseFile,
    over: Annotated[
        list[str],
        typer.Option(
            "--over",
            metavar="key=v1,v2",
            help="A key of the case file and the values that it takes; repeatable: every combination. An objective by its ROI, and kind "
            "where there are several: objective.PTV.weight, objective.PTV.min_dose.weight.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A run folder for each member, and the table.")],
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="i/n", help="Part i of n only, from 1, as in a job array; the table is of all.")
    ] = None,
    overrides: Set = None,
    device: Device = "auto",
    threads: Threads = None,
    dtype: Dtype = None,
    seed: Seed = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Plan every combination of some values; what is finished is skipped, so that a sweep goes on where it stopped."""
    progress = _progress(quiet, verbose)

    from torchimpt.cli.show import show_sweep
    from torchimpt.runs.sweep import parse_over, parse_shard, run_sweep

    rows = run_sweep(
        case_file, out, parse_over(over), overrides=[*(overrides or ()), *_flags(dtype, seed)], shard=parse_shard(shard), device=device,
        threads=threads, progress=progress,
    )  # fmt: skip
    show_sweep(rows, out)
    states = {row["status"] for row in rows}
    if states == {"failed"}:
        raise typer.Exit(2)
    if states & {"failed", "not converged"}:
        raise typer.Exit(3)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN|DOSE ...",
            help="Two or more run folders; or one, and doses of its plan: .mhd as MCsquare wrote it (eV/g per proton), "
            ".mha in Gy (RBE-weighted, whole course, LPS).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="PAGE.html", help="Where the page goes.")] = Path("comparison.html"),
) -> None:
    """Compare runs, or a run with doses that other programs computed: a table, and a page with DVHs, doses and their differences."""
    from torchimpt.cli.logs import set_up
    from torchimpt.cli.show import show_comparison
    from torchimpt.report.compare import comparison, write_comparison
    from torchimpt.runs.compared import ground_of
    from torchimpt.runs.returned import read_records

    set_up(quiet=False, verbose=False)
    records = read_records(runs)
    write_comparison(out, records, ground_of(next(run for run in runs if run.is_dir()), records))
    show_comparison([record.name for record in records], comparison(records), out)


@app.command()
def export(
    run: RunFolder,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="The folder to write; empty, or not there yet.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="dicom: RT Ion Plan and RT Doses, with CT and structure set where the patient did not come from DICOM; mcsquare: CT, beam "
            "data, plan and configuration of a Monte Carlo run; matrad: a .mat file with ct, cst, stf, pln and resultGUI.",
        ),
    ] = "dicom",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a run's plan, and what belongs to it, for another program."""
    from torchimpt.cli.logs import set_up
    from torchimpt.runs.export import run_export

    set_up(quiet=quiet, verbose=verbose)
    told = run_export(run, to, format)
    with printing():
        print(told)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder of anything, or a file.")],
    case: Annotated[
        Path | None, typer.Option("--case", metavar="CASE.toml", help="Write the case file that is proposed; it runs as it stands.")
    ] = None,
) -> None:
    """Say what a folder or file holds: CT, ROIs, plans beam by beam, doses, machines, runs; and propose a case file. Reads only."""
    from torchimpt.cli.logs import set_up
    from torchimpt.cli.show_inspection import show_inspection, write_proposal
    from torchimpt.inspection import inspect as look

    set_up(quiet=True, verbose=False)
    found = look(path)
    written = None if case is None else write_proposal(found, case)
    show_inspection(found, path, written)


@app.command()
def commission(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="Names the machine and its tables; docs/machine_file.md has an example.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="MACHINE", help="The folder to write; empty, or not there yet.")],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fit a machine to measured or simulated tables; writes its file with residuals and plots."""
    from torchimpt.cli.logs import set_up
    from torchimpt.commissioning import commission as fit
    from torchimpt.commissioning import read_tables, summary, write_commissioning

    set_up(quiet=quiet, verbose=verbose)
    result = fit(read_tables(config))
    files = write_commissioning(out, result)
    with printing():
        print(f'{summary(result)}Wrote {", ".join(files)} to {out}. In a case file: [machine] format = "torchimpt", path = "{out}"')


@app.command()
def watch(
    run: RunFolder,
    wait: Annotated[bool, typer.Option("--wait", help="Where no run has started yet, wait for one.")] = False,
) -> None:
    """Follow a run until it ends: objective, terms, goals and time; then what it came to."""
    from torchimpt.cli.follow import follow

    follow(run, wait)


@app.command()
def new(name: Annotated[str, typer.Argument(metavar="NAME", help="Of the case; NAME.toml is written.")]) -> None:
    """Write a commented case file to start from; it runs as it stands."""
    from torchimpt.cli.template import write_case

    path = write_case(name)
    with printing():
        print(f"Wrote {path}. Next: torchimpt plan {path} --out runs/{path.stem}")


def main() -> NoReturn:
    """Run the command line from Python; the program itself starts in `start.py`."""
    run_command_line(lambda: app)
