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
from adg_plugin.config.messages import NO_POOL
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
_GO_ON = ("compare", "embed", "run", "sample", "select", "sft")  # the other commands begin anew

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
    quiet: Quiet = False,
) -> None:
    """Sample, score and select. The last line on stdout is the path of selected.jsonl.

    An interrupted run goes on when the same command is given again; another budget, weight, score or bin count samples
    nothing again. Under torchrun or accelerate launch, the ranks share the sampling.
    """
    settings, where = _settings(config, set_, out, executor, answers)
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


@app.command()
def sample(config: Config, set_: Set = None, out: Out = None, executor: Executor = None, quiet: Quiet = False) -> None:
    """Draw answers only, for `adg embed` or `adg select` to go on with, here or in another environment.

    The last line on stdout is the run folder.
    """
    _run_stage("sample", config, set_, out, executor, quiet)


@app.command()
def embed(config: Config, set_: Set = None, out: Out = None, quiet: Quiet = False) -> None:
    """Embed the answers that `adg sample` drew. The last line on stdout is the run folder."""
    _run_stage("embed", config, set_, out, None, quiet)


def _run_stage(
    stage: Literal["sample", "embed"],
    config: Path,
    overrides: list[str] | None,
    out: str | None,
    executor: str | None,
    quiet: bool,
) -> None:
    settings, where = _settings(config, overrides, out, executor)
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


def _settings(
    config: Path, overrides: list[str] | None, out: str | None, executor: str | None, answers: Path | None = None
) -> tuple[ADGConfig, str]:
    """Return the settings and the run folder, which may be a URL."""
    given = {"executor": executor, "answers": answers}
    settings = load_config(config, overrides, **{key: value for key, value in given.items() if value is not None})
    if not settings.datasets:
        raise ConfigError([NO_POOL], source=str(config))
    where = out or settings.output_dir or str(Path("runs") / config.stem)
    return settings, where.rstrip("/") or "/"


@contextmanager
def _run_folder(where: str, team: Team) -> Iterator[Path]:
    """Yield the run folder, or a local copy of a URL."""
    from adg_plugin.store.mirror import local_run_folder

    if "://" in where and team.size > 1:
        raise ConfigError([f"--out is {where!r}: ranks meet in a folder that all of them see; give one, not a URL"])
    with local_run_folder(where) as folder:
        yield folder


@contextmanager
def _launched_team() -> Iterator[Team]:
    """Yield the processes that share this command."""
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
    if command == "eval":
        return "interrupted: re-run the same command to resume after the last finished task"
    if command in _GO_ON:
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
