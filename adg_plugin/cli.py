"""The `adg` command. The result goes to stdout, progress and messages to stderr."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from adg_plugin.adapters import cli as training
from adg_plugin.config.run_folder import load_selection
from adg_plugin.config.schema import ADGConfig, load_config
from adg_plugin.console import AsJson, ConfigFile, OutFolder, Overrides, result_console
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
_console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)
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
                print("\n".join(plan.lines()))
        return
    from adg_plugin.pipeline.run import run_selection
    from adg_plugin.pipeline.stage import Pool
    from adg_plugin.report.summary import print_summary
    from adg_plugin.store.mirror import local_run_folder

    with _launched(where) as team, local_run_folder(where) as folder:
        selection = run_selection(Pool.of(settings), settings, folder, team=team, show_progress=not quiet)
        if team.rank == 0:
            if not quiet:
                print_summary(selection.run_dir, _console)
            path = f"{where}/{selection.path.name}"
    if team.rank == 0:
        print(path)  # a URL holds it only now


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
        if team.rank == 0:
            _console.print(
                f"{counts.prompts} rows: {counts.completed} complete, {counts.sampled} to embed, {counts.unsampled} to "
                "sample",
                highlight=False,
                soft_wrap=True,
            )
    if team.rank == 0:
        print(where)


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
    _console.print(f"{counts.scored} rows scored{note}", highlight=False, markup=False, soft_wrap=True)
    print(out)


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
        print(json.dumps(found.summary(gpu_hour_price), indent=2))
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


def _set_up_logging() -> None:
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a log is no place for bars
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of an optional kernel whenever PEFT imports it
    if _console.is_terminal:
        handler: logging.Handler = RichHandler(console=_console, show_path=False, show_time=False)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    else:  # one line each, however long, so that a log can be searched
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; errors of this package end it with a message and their exit code."""
    _set_up_logging()
    signal.signal(signal.SIGTERM, _interrupt)  # so that what is buffered is written
    try:
        app(arguments, prog_name="adg")
    except ADGError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
    except SystemExit as err:
        if err.code == _INTERRUPTED:  # which Typer makes of a KeyboardInterrupt, without a word
            print(_after_interruption(sys.argv[1:] if arguments is None else arguments), file=sys.stderr)
        raise
