"""The `dse` command: each verb is a thin wrapper around the Python function of the same name.

Exit codes: 0; 2 only when nothing is feasible; 1 for every other error, usage errors included. Errors are one paragraph on
standard error; `--debug` shows the traceback. Heavy imports happen inside the verbs, so that `dse --help` is quick.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dse.answers import Run
    from dse.swept import Sweep

INFEASIBLE = 2
_INTERRUPTED = 130

app = typer.Typer(
    name="dse",
    help="Design-space exploration for large models: provably best parallel plans and machines.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="An experiment file (YAML).")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run folder to make; a number is added if it exists.")]
_SET = "Put a value in the file: hardware.devices=64."
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_SET)]
Hands = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Who does the work: search.executor, workers, address.")
]
Grid = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=[A,B,…]", help="An axis: hardware.devices=[8,16,32]; KEY=VALUE holds in all runs."),
]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", metavar="DIR", help="Your own measurements: a folder of dse calibrate."),
]
Json = Annotated[bool, typer.Option("--json", help="End with one line of JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback()
def _root() -> None:
    pass


def _overrides(settings: list[str] | None, calibration: Path | None) -> tuple[str, ...]:
    """Settings with the calibration among them, its path whole: in a file it would start at the file's folder."""
    return (*(settings or ()), *(() if calibration is None else (f"calibration={calibration.resolve()}",)))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C outside of a search is told with what it leaves behind."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise typer.Exit(_fail(": ".join(["interrupted", *map(str, error.args)]))) from None


@app.command("run", short_help="Search an experiment's space for its front.")
def run_command(
    file: File,
    out: Out = None,
    calibration: Calibration = None,
    settings: Settings = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search an experiment's space: print its front and write a run folder."""
    del debug
    from dse.progress import reporter
    from dse.runner import run

    with _interruptible(), reporter() as report:
        answer = run(file, out=out, overrides=_overrides(settings, calibration), progress=report)
    _print_run(answer, as_json)


@app.command("resume", short_help="Go on with a run or sweep that was ended.")
def resume_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run or of a sweep.")],
    settings: Hands = None,
    as_recorded: Annotated[
        bool, typer.Option("--as-recorded", help="Go on although the file that the run was made from changed.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Go on with a run that was ended by anything; --set may change who does the work (search.executor, workers, address)."""
    del debug
    from dse.progress import reporter
    from dse.resumption import resume
    from dse.sweeps import GRID, resume_sweep

    answer: Run | Sweep
    with _interruptible(), reporter() as report:
        go_on = resume_sweep if (folder / GRID).is_file() else resume
        answer = go_on(folder, overrides=tuple(settings or ()), as_recorded=as_recorded, progress=report)
    _print_run(answer, as_json)


@app.command("sweep", short_help="Run an experiment for every combination of settings.")
def sweep_command(file: File, settings: Grid = None, out: Out = None, as_json: Json = False, debug: Debug = False) -> None:
    """Run an experiment for every combination of --set KEY=[A,B,…], and join the fronts. `dse resume` goes on with it."""
    del debug
    from dse.progress import reporter
    from dse.sweeps import sweep

    with _interruptible(), reporter() as report:
        answer = sweep(file, tuple(settings or ()), out=out, progress=report)
    _print_run(answer, as_json)


def _print_run(answer: Run | Sweep, as_json: bool) -> None:
    """Print an answer and leave with its exit code."""
    from dse.answers import to_json_text

    typer.echo(str(answer))
    if answer.trouble:
        typer.echo(f"dse: {answer.trouble}", err=True)
    stopped = answer.stopped
    if stopped == "sampled":
        typer.echo("dse: stopped (sampled): the budget is spent; a larger one looks at more plans", err=True)
    elif stopped == "nothing new":
        said = "the method asks for plans that it knows, though the budget would pay for others; try another"
        typer.echo(f"dse: stopped (nothing new): {said}", err=True)
    elif stopped and answer.folder is not None:
        typer.echo(f"dse: stopped ({stopped}); dse resume {answer.folder} goes on", err=True)
    if as_json:
        typer.echo(to_json_text(answer.to_json()))
    raise typer.Exit(answer.exit_code)


@app.command("report", short_help="Write a run's reports again and print its front.")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")], as_json: Json = False, debug: Debug = False
) -> None:
    """Write report.md and report.html of a run again, and print its front."""
    del debug
    from dse.answers import to_json_text
    from dse.run_folder import read, write_reports

    answer = read(folder)
    write_reports(answer, folder)
    typer.echo(str(answer))
    if as_json:
        typer.echo(to_json_text(answer.to_json()))


@app.command("explain", short_help="Take one plan apart: where time and memory go.")
def explain_command(
    source: Annotated[Path, typer.Argument(metavar="FILE|RUN", help="An experiment file or a run folder.")],
    plan: Annotated[str | None, typer.Option("--plan", metavar="KEY=VALUE,…", help="The plan: tensor=8,pipeline=4,…")] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="A front member by its number (default 1).")] = None,
    calibration: Calibration = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Take one plan apart: time per operator beside its bound, memory per stage, what would relieve the bottleneck."""
    del debug
    from dse.explanation import explain

    typer.echo(str(explain(source, plan=plan, rank=rank, overrides=_overrides(settings, calibration))))


@app.command("size", short_help="Find the fewest accelerators that carry a rate.")
def size_command(
    file: File,
    objective: Annotated[str, typer.Option("--objective", help="What is made least: devices, dollars or watts.")] = "devices",
    rate: Annotated[float | None, typer.Option("--rate", help="Requests a second, in place of the file's.")] = None,
    settings: Settings = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the fewest accelerators (or dollars, or watts) that carry a rate within the limits of a serving experiment."""
    del debug
    from dse.answers import to_json_text
    from dse.sizing import size

    found = size(file, objective=objective, rate=rate, overrides=tuple(settings or ()))
    typer.echo(str(found))
    if as_json:
        typer.echo(to_json_text(found.to_json()))
    raise typer.Exit(found.exit_code)


@app.command("export", short_help="Write the file that starts a plan, or a study.")
def export_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    to: Annotated[str, typer.Option("--to", metavar="FRAMEWORK", help="vllm, sglang, trtllm, megatron, torchtitan, optuna.")],
    rank: Annotated[int, typer.Option("--rank", min=1, help="A front member by its number.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where it goes (default: the run).")] = None,
    study: Annotated[str | None, typer.Option("--study", metavar="URL", help="With --to optuna: a database instead.")] = None,
    debug: Debug = False,
) -> None:
    """Write the file that starts a plan in a real framework, or the run as a study for optuna-dashboard."""
    del debug
    if to == "optuna":
        from dse.study import export_study

        typer.echo(export_study(folder, study or out))
        return
    from dse.launch.registry import FRAMEWORKS, export
    from dse.measures import nearest

    if to not in FRAMEWORKS:
        raise ValueError(f"--to: no framework is called {to!r}{nearest(to, [*FRAMEWORKS, 'optuna'])}")

    typer.echo(str(export(folder, to, rank, out)))


@app.command("predict", short_help="Predict points that somebody else wrote.")
def predict_command(
    points: Annotated[Path, typer.Argument(metavar="POINTS.csv", help="One design point a row.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT.csv", help="Where the rows go, with results appended.")],
    kind: Annotated[str, typer.Option("--kind", help="training, serving or kernel.")] = "training",
    calibration: Calibration = None,
    debug: Debug = False,
) -> None:
    """Predict any number of points somebody else wrote; no row is dropped."""
    del debug
    from dse.prediction import predict

    typer.echo(str(predict(points, out, kind=kind, calibration=calibration)))


@app.command("validate", short_help="Compare predictions with published results.")
def validate_command(
    split: Annotated[str, typer.Option("--split", help="Published rows: held-out, calibration or all.")] = "held-out",
    headlines: Annotated[bool, typer.Option("--headlines", help="Check the headline claims of papers instead.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare predictions with published results: error by source, interval coverage, order of plans."""
    del debug
    from dse.answers import to_json_text

    if headlines:
        from dse.headlines import headlines as judged

        claims = judged()
        typer.echo(str(claims))
        if as_json:
            typer.echo(to_json_text(claims.to_json()))
        return
    from dse.validation import validate

    found = validate(split)
    typer.echo(str(found))
    if as_json:
        typer.echo(to_json_text(found.to_json()))


@app.command("calibrate", short_help="Measure this machine for better predictions.")
def calibrate_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where rows go; resumed.")] = Path("calibration"),
    suite: Annotated[str, typer.Option("--suite", metavar="A,B", help="Just these suites: gemm,attention,….")] = "",
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Stop after this long.")] = 480.0,
    small: Annotated[bool, typer.Option("--small", help="Few, tiny rows: a CPU does them in seconds.")] = False,
    experiment: Annotated[
        Path | None, typer.Option("--for", metavar="FILE|RUN", help="Just the kernels that this answer hangs on.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="How many kernels, with --for.")] = 5,
    server: Annotated[
        str | None, typer.Option("--replay", metavar="URL", help="Time an OpenAI-compatible server instead; needs --model.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="With --replay: the model's name at the server.")] = "",
    trace: Annotated[Path | None, typer.Option("--trace", metavar="CSV|JSONL", help="With --replay: what to send.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="With --replay: requests at once.")] = 8,
    prompt: Annotated[int, typer.Option("--isl", min=1, help="With --replay: tokens a prompt.")] = 1024,
    output: Annotated[int, typer.Option("--osl", min=1, help="With --replay: tokens an answer.")] = 128,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="FILE|RUN|CELLS", help="With --replay: predict it too, as for gpu=H100,tp=2."),
    ] = None,
    plan: Annotated[str | None, typer.Option("--plan", help="With --against: a plan other than the front's first.")] = None,
    only_list: Annotated[bool, typer.Option("--list", help="Say what there is to measure, and measure nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Measure this machine, or with --for just what an experiment's answer hangs on."""
    del debug
    if server is not None:
        from dse.replaying import replay_server

        if not model:
            raise ValueError("--replay needs --model, the name that the server knows the model by")
        lengths = {"concurrency": concurrency, "prompt": prompt, "output": output}
        found = replay_server(server, out, model=model, trace=trace, against=against, plan=plan, **lengths)
        typer.echo(str(found))
        return
    if against is not None or plan is not None:
        raise ValueError("--against and --plan say what a replayed server is set beside: give --replay URL too")
    from dse.calibration import calibrate, listed, uncertain_shapes, write_shapes

    if experiment is None:
        if only_list:
            typer.echo(listed(suite, small=small))
            return
        raise typer.Exit(calibrate(out, suite=suite, seconds=seconds, small=small))
    if suite or small:
        raise ValueError("--for says by itself what is measured: leave --suite and --small out")
    wanted = uncertain_shapes(experiment, most)
    typer.echo(str(wanted))
    if only_list or not wanted.chosen:
        return
    write_shapes(wanted.chosen, out / "shapes.csv")
    typer.echo(f"\n{out / 'shapes.csv'}")
    raise typer.Exit(calibrate(out, seconds=seconds, shapes=out / "shapes.csv"))


@app.command("models")
def models_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show one model in full.")] = None, debug: Debug = False
) -> None:
    """List the models that can be named, or show one."""
    del debug
    from dse.catalogue import model_page, models_page

    typer.echo(models_page() if name is None else model_page(name))


@app.command("hardware")
def hardware_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show one device in full.")] = None, debug: Debug = False
) -> None:
    """List the devices that can be named, or show one."""
    del debug
    from dse.catalogue import device_page, devices_page

    typer.echo(devices_page() if name is None else device_page(name))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] != ["calibrate"]:  # that one measures the machine as it is
        from search.execution import THREADS

        for name in THREADS:
            os.environ.setdefault(name, "1")
    sys.exit(execute(given))


def execute(arguments: list[str]) -> int:
    """Run one command; the exit code."""
    try:
        code: Any = app(arguments or ["--help"], prog_name="dse", standalone_mode=False)
    except KeyboardInterrupt:
        return _fail("interrupted")
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        return _fail(_told(error))
    if code == _INTERRUPTED:  # Ctrl-C, which the library of the command line turns into this
        return _fail("interrupted")
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    print(f"dse: {message}", file=sys.stderr)
    return 1


def _told(error: Exception) -> str:
    """An error in one paragraph."""
    usage = getattr(error, "format_message", None)  # click's own errors
    if usage is not None:
        return f"{usage()} See dse --help."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    from search.execution import ExecutorError

    if isinstance(error, ValueError | LookupError | ExecutorError):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (an error of this program; --debug shows where)"


if __name__ == "__main__":
    main()
