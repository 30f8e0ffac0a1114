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
from rich.console import Console
from rich.logging import RichHandler

from adg_plugin.adapters import cli as training
from adg_plugin.config.run_folder import load_selection
from adg_plugin.config.schema import ADGConfig, load_config
from adg_plugin.errors import ADGError, ConfigError
from adg_plugin.report import cli as report
from adg_plugin.tools.compare import cli as compare
from adg_plugin.tools.doctor import cli as doctor
from adg_plugin.tools.estimate import cli as estimate
from adg_plugin.tools.evaluation import cli as evaluation
from adg_plugin.tools.export import cli as export
from adg_plugin.tools.stability import cli as stability
from adg_plugin.tools.sweep import cli as sweep
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

Config = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings, flat or in an `adg:` block.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: budget=500, datasets.0.path=more.jsonl."),
]
Out = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Run folder, or a URL such as s3://bucket/run; default runs/NAME-OF-CONFIG."),
]
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
    config: Config,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score the generated_answers in this file, and sample nothing.")
    ] = None,
    set_: Set = None,
    out: Out = None,
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
        _print_plan(settings, where)
        return
    from adg_plugin.pipeline.run import run_selection
    from adg_plugin.pipeline.stage import Pool
    from adg_plugin.report.summary import print_summary

    with _launched_team() as team, _run_folder(where, team) as folder:
        selection = run_selection(Pool.of(settings), settings, folder, team=team, show_progress=not quiet)
        if team.rank == 0:
            if not quiet:
                print_summary(selection.run_dir, _console)
            path = f"{where}/{selection.path.name}"
    if team.rank == 0:
        print(path)  # a URL holds it only now


def _print_plan(settings: ADGConfig, where: str) -> None:
    from adg_plugin.pipeline.plan import plan_selection

    with _launched_team() as team:
        _refuse_url(where, team)
        plan = plan_selection(settings, where, team=team)
        if team.rank == 0:
            print("\n".join(plan.lines()))


@app.command()
def sample(config: Config, set_: Set = None, out: Out = None, executor: Executor = None, quiet: Quiet = False) -> None:
    """Sample answers only, for `adg embed` or `adg select` to resume from, here or in another environment.

    The last line on stdout is the run folder.
    """
    _run_stage("sample", config, set_, out, executor, quiet)


@app.command()
def embed(config: Config, set_: Set = None, out: Out = None, quiet: Quiet = False) -> None:
    """Embed the answers of `adg sample`. The last line on stdout is the run folder."""
    _run_stage("embed", config, set_, out, None, quiet)


def _run_stage(
    stage: Literal["sample", "embed"],
    config: Path,
    overrides: list[str] | None,
    out: str | None,
    executor: str | None,
    quiet: bool,
) -> None:
    settings, where = load_selection(config, overrides, out, executor=executor)
    from adg_plugin.pipeline.run import run_stage

    with _launched_team() as team, _run_folder(where, team) as folder:
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
def _run_folder(where: str, team: Team) -> Iterator[Path]:
    from adg_plugin.store.mirror import local_run_folder

    _refuse_url(where, team)
    with local_run_folder(where) as folder:
        yield folder


def _refuse_url(where: str, team: Team) -> None:
    if "://" in where and team.size > 1:
        raise ConfigError([f"--out is {where!r}: ranks meet in a folder that all of them see; give one, not a URL"])


@contextmanager
def _launched_team() -> Iterator[Team]:
    from adg_plugin.adapters.torch_team import launched_team

    with launched_team() as team:
        yield team


@app.command()
def score(
    config: Config,
    answers: Annotated[Path, typer.Option(metavar="FILE", help="Rows: a prompt, generated_answers, id.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL: id, dispersion, anisotropy, score.")],
    set_: Set = None,
) -> None:
    """Score answers that somebody else generated. The last line on stdout is the path of the scores."""
    settings = load_config(config, set_)
    from adg_plugin.tools.score_answers import score_answers

    counts = score_answers(settings, answers, out)
    note = f", {counts.rejected} rejected: see {counts.rejected_path}" if counts.rejected else ""
    _console.print(f"{counts.scored} rows scored{note}", highlight=False, markup=False, soft_wrap=True)
    print(out)


@app.command()
def settings() -> None:
    """Print every setting with its default, as a page of Markdown."""
    from adg_plugin.config.page import settings_page

    print(settings_page(), end="")


for commands in (compare, doctor, estimate, evaluation, export, report, stability, sweep, training):
    commands.register(app)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _after_interruption(arguments: list[str]) -> str:
    command = arguments[0] if arguments else ""
    if command in _RESUMES:
        return "interrupted: re-run the same command to resume"
    return "interrupted"


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
