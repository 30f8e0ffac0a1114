"""The `adg` command. The result goes to stdout, progress and messages to stderr."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from adg_plugin.adapters import cli as training
from adg_plugin.config.run_folder import load_selection
from adg_plugin.config.schema import ADGConfig, load_config
from adg_plugin.console import (
    DEBUG,
    AsJson,
    ConfigFile,
    OutFolder,
    Overrides,
    message,
    message_console,
    print_error,
    print_json,
    print_result,
    result_console,
    say,
    set_up_logging,
    show_traceback,
    stderr_is_terminal,
)
from adg_plugin.errors import ADGError, ConfigError
from adg_plugin.report.cli import explain, report, show
from adg_plugin.tools.compare.cli import compare
from adg_plugin.tools.doctor.cli import doctor
from adg_plugin.tools.evaluation.cli import evaluate
from adg_plugin.tools.export import export
from adg_plugin.tools.stability import stability
from adg_plugin.tools.sweep.cli import sweep
from adg_plugin.version import __version__

if TYPE_CHECKING:
    from adg_plugin.pipeline.ranks import Team

app = typer.Typer(
    help="Choose which instruction rows to train on, by asking the model that will be trained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_INTERRUPTED = 130
_RESUMES = ("compare", "embed", "eval", "run", "sample", "select", "sft")  # the other commands begin anew

Executor = Annotated[
    Literal["inline", "ray"] | None,
    typer.Option(help="Where the engine runs: in this process, or on the workers of a Ray cluster."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary, warnings only.")]


def _show_version(value: bool) -> None:
    if value:
        print(f"adg-plugin {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[  # `main` takes it out, for it may also stand behind the command
        bool, typer.Option("--debug", help="Show what caused an error, as ADG_DEBUG=1 does; also behind a command.")
    ] = False,
) -> None:
    pass


@app.command()
def select(
    config: ConfigFile,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score the generated_answers in this file, and sample nothing.")
    ] = None,
    set_: Overrides = None,
    out: OutFolder = None,
    executor: Executor = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all that comes before a model, print the plan.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Sample, score and select. The last line on stdout is the path of selected.jsonl.

    Re-run the same command to resume an interrupted run; another budget, weight, score or bin count samples nothing
    again. Under torchrun or accelerate launch, the ranks share the sampling.
    """
    settings, where = load_selection(config, set_, out, executor=executor, answers=answers)
    if dry_run:
        from adg_plugin.pipeline.plan import plan_selection

        with _launched(where) as team:
            plan = plan_selection(settings, where, team=team)
            if team.rank == 0:
                print(*map(message, plan.lines()), sep="\n")
        return
    from adg_plugin.pipeline.run import run_selection
    from adg_plugin.pipeline.stage import Pool
    from adg_plugin.report.summary import print_summary
    from adg_plugin.store.mirror import local_run_folder

    with _launched(where) as team, local_run_folder(where) as folder:
        selection = run_selection(Pool.of(settings), settings, folder, team=team, show_progress=not quiet)
        if team.rank == 0:
            if not quiet:
                print_summary(selection.run_dir, message_console())
            path = f"{where}/{selection.path.name}"
    if team.rank == 0:
        print_result(path)  # a URL holds it only now


@app.command()
def sample(
    config: ConfigFile, set_: Overrides = None, out: OutFolder = None, executor: Executor = None, quiet: Quiet = False
) -> None:
    """Sample answers only, for `adg embed` or `adg select` to resume from, here or in another environment.

    The last line on stdout is the run folder.
    """
    _run_stage("sample", *load_selection(config, set_, out, executor=executor), quiet=quiet)


@app.command()
def embed(config: ConfigFile, set_: Overrides = None, out: OutFolder = None, quiet: Quiet = False) -> None:
    """Embed the answers of `adg sample`. The last line on stdout is the run folder."""
    _run_stage("embed", *load_selection(config, set_, out), quiet=quiet)


def _run_stage(stage: Literal["sample", "embed"], settings: ADGConfig, where: str, *, quiet: bool) -> None:
    from adg_plugin.pipeline.run import run_stage
    from adg_plugin.store.mirror import local_run_folder

    with _launched(where) as team, local_run_folder(where) as folder:
        counts = run_stage(stage, settings, folder, team=team, show_progress=not quiet)
        if team.rank == 0 and not quiet:
            left = f"{counts.sampled} to embed, {counts.unsampled} to sample"
            say(f"{counts.prompts} rows: {counts.completed} complete, {left}")
    if team.rank == 0:
        print_result(where)


@contextmanager
def _launched(where: str) -> Iterator[Team]:
    from adg_plugin.adapters.torch_team import launched_team

    with launched_team() as team:
        if "://" in where and team.size > 1:
            raise ConfigError([f"--out is {where!r}: ranks meet in a folder that all of them see; give one, not a URL"])
        yield team


@app.command()
def score(
    config: ConfigFile,
    answers: Annotated[Path, typer.Option(metavar="FILE", help="Rows: a prompt, generated_answers, id.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL: id, dispersion, anisotropy, score.")],
    set_: Overrides = None,
) -> None:
    """Score answers that somebody else generated. The last line on stdout is the path of the scores."""
    settings = load_config(config, set_)
    from adg_plugin.tools.score_answers import score_answers

    counts = score_answers(settings, answers, out)
    note = f", {counts.rejected} rejected: see {counts.rejected_path}" if counts.rejected else ""
    say(f"{counts.scored} rows scored{note}")
    print_result(out)


def estimate(
    config: ConfigFile,
    set_: Overrides = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Run folder; default runs/NAME-OF-CONFIG.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=2, help="Rows to measure; default three full batches, or half of a small pool.")
    ] = None,
    gpu_hour_price: Annotated[float | None, typer.Option(min=0, help="Price of an hour of one device.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Say what a selection will take: time, tokens, memory, disk, cost. A few batches are measured, and kept.

    With several ranks or Ray workers, sampling takes so many times less, and the cost stays.
    """
    settings, where = load_selection(config, set_, out)
    if "://" in where:
        problem = f"output_dir is {where!r}: adg estimate measures into a folder; give one with --out"
        raise ConfigError([problem], source=str(config))
    from adg_plugin.tools.estimate.estimate import print_estimate
    from adg_plugin.tools.estimate.measure import measure

    found = measure(settings, Path(where), rows=rows, show_progress=not quiet)
    if as_json:
        print_json(found.summary(gpu_hour_price))
    else:
        print_estimate(found, result_console(), gpu_hour_price)


@app.command()
def settings() -> None:
    """Print every setting with its default, as a page of Markdown."""
    from adg_plugin.config.page import settings_page

    print(settings_page(), end="")


app.command()(compare)
app.command()(doctor)
app.command()(estimate)
app.command("eval")(evaluate)
for command in (export, show, explain, report, stability, sweep):
    app.command()(command)
training.register(app)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _after_interruption(arguments: list[str]) -> str:
    resumes = bool(arguments) and arguments[0] in _RESUMES
    return "interrupted: re-run the same command to resume" if resumes else "interrupted"


def _set_up_logging(arguments: list[str]) -> None:
    if not stderr_is_terminal() or {"-q", "--quiet"} & set(arguments):  # a log is no place for bars
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of transformers, too
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of an optional kernel whenever PEFT imports it
    set_up_logging()


@contextmanager
def _debugging(arguments: list[str]) -> Iterator[list[str]]:
    """Yield the arguments without `--debug`, which may stand anywhere; but `adg sft` passes on what is behind it."""
    command = next((word for word in arguments if not word.startswith("-")), None)
    ends = [arguments.index(word) for word in ("--", "sft") if word in arguments and (word == "--" or word == command)]
    own = min(ends, default=len(arguments))
    before = os.environ.get(DEBUG)
    if "--debug" in arguments[:own]:
        os.environ[DEBUG] = "1"  # the processes that are started know it, too
    try:
        yield [word for word in arguments[:own] if word != "--debug"] + arguments[own:]
    finally:
        os.environ.pop(DEBUG, None)
        if before is not None:
            os.environ[DEBUG] = before


def main(arguments: list[str] | None = None) -> None:
    """Run the command; errors of this package end it with a message and their exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _set_up_logging(arguments)
    signal.signal(signal.SIGTERM, _interrupt)  # so that what is buffered is written
    with _debugging(arguments) as words:
        try:
            app(words, prog_name="adg")
        except ADGError as err:
            print_error(err)
            sys.exit(err.exit_code)
        except SystemExit as err:
            if err.code == _INTERRUPTED:  # which Typer makes of a KeyboardInterrupt, without a word
                say(_after_interruption(words))
            raise
        except Exception:
            sys.excepthook = show_traceback  # Typer has put its own there
            raise
