"""What the commands share: all that goes to a terminal, progress of a long stage, arguments and options."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

import rich.text
import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column, Table

from adg_plugin.errors import redacted, visible

T = TypeVar("T")

DEBUG = "ADG_DEBUG"  # the variable that has the cause of an error shown, here and in the processes that are started
_LINE_EVERY_S = 15.0

RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run folder of a finished selection.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings, flat or in an `adg:` block.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: budget=500, datasets.0.path=more.jsonl."),
]
OutFolder = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Run folder, or a URL such as s3://bucket/run; default runs/NAME-OF-CONFIG."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


class Text(rich.text.Text):
    """A text of Rich's that is `visible`, before anything measures its width. Never read as markup."""

    def __init__(self, text: str = "", style: str = "", **options: Any) -> None:
        super().__init__(visible(text), style, **options)

    def append(self, text: rich.text.Text | str, style: Any = None) -> rich.text.Text:
        """Add a text, and return the whole."""
        return super().append(visible(text) if isinstance(text, str) else text, style)


class Terminal(Console):
    """A console of Rich's that reads no markup in what it prints, and prints nothing that is not `visible`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> rich.text.Text:
        """Return a string as a text; cells and titles of tables come here, too."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield what will be written, whatever it was made of."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def message_console() -> Terminal:
    """Return a console for stderr, as wide as its terminal; 120 in a log."""
    return Terminal(stderr=True, width=None if stderr_is_terminal() else 120)


def result_console() -> Terminal:
    """Return a console for stdout: as wide as its terminal, or as COLUMNS says; without either, 80."""
    return Terminal(width=None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else 80)


def stderr_is_terminal() -> bool:
    """Return whether a person reads stderr; a notebook may have none, or one that is no file."""
    return bool(getattr(sys.stderr, "isatty", bool)())


def say(*messages: str) -> None:
    """Print messages on stderr, a line each."""
    _write("\n".join(map(message, messages)))


def message(text: str) -> str:
    """Return a message for a terminal: `redacted`, `visible`, its further lines indented: none looks like another."""
    return re.sub(r"\n(?=\S)", "\n  ", visible(redacted(text)))


def _write(text: str) -> None:
    if sys.stderr is not None:  # `print` would take stdout
        print(text, file=sys.stderr)


def print_result(text: object) -> None:
    """Print a path on stdout: `visible` on a terminal, and as it is where a program reads it."""
    print(visible(str(text)) if sys.stdout.isatty() else text)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(visible(json.dumps(value, indent=2, ensure_ascii=False)))


def print_error(err: Exception) -> None:
    """Print an error on stderr; with `--debug` or ADG_DEBUG=1 where it was raised and all that caused it before."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        at: BaseException | None = err
        while at is not None:  # `from None` hides what a user need not see, but who debugs must
            at.__suppress_context__ = False
            at = at.__cause__ or at.__context__
        show_traceback(type(err), err, err.__traceback__)
    say(f"error: {err}")


def show_traceback(kind: type[BaseException], err: BaseException, at: TracebackType | None) -> None:
    """Print an exception on stderr, in the place of `sys.excepthook`, which prints texts as they are."""
    _write(visible("".join(traceback.format_exception(kind, err, at)).rstrip()))


class _LogFormat(logging.Formatter):
    """Log records whose texts are `visible`."""

    def format(self, record: logging.LogRecord) -> str:
        return message(super().format(record))


def set_up_logging() -> None:
    """Show warnings on stderr: in colours on a terminal; in a log one line each, however long, for searching."""
    if stderr_is_terminal():
        handler: logging.Handler = RichHandler(console=message_console(), show_path=False, show_time=False)
        handler.setFormatter(_LogFormat("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_LogFormat("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class SamplingProgress:
    """Counts rows and sampled tokens; shows them as a bar on a terminal, as a line now and then in a log.

    Args:
        total: rows of the whole pool.
        done: rows that were there already.
        show: False prints nothing.
    """

    def __init__(self, total: int, done: int = 0, *, verb: str = "sampling", show: bool = True) -> None:
        self.total, self.done, self._first = total, done, done
        self.tokens = self.rejected = 0
        self._began = self._shown_at = time.monotonic()
        self._console = message_console()
        self._verb = verb
        self._show = show
        self._bar: Progress | None = None
        if show and self._console.is_terminal:
            self._bar = Progress(
                TextColumn(verb, markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("rows ·{task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("· left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=total, completed=done, speed="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self._show:
            self._say()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._began

    def add(self, tokens: int, *, rejected: bool) -> None:
        """Count one more row."""
        self.done += 1
        self.tokens += tokens
        self.rejected += rejected
        if self._bar:
            speed = f" {self._speed()} ·" if self.tokens else ""
            self._bar.update(self._task, completed=self.done, speed=speed)
        elif self._show and time.monotonic() - self._shown_at >= _LINE_EVERY_S:
            self._say()

    def _speed(self) -> str:
        return f"{self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s"

    def _say(self) -> None:
        self._shown_at = time.monotonic()
        fresh = self.done - self._first
        each = self.seconds / fresh if fresh else math.nan
        left = each * (self.total - self.done) if self.done < self.total else 0.0
        rejected = f", {self.rejected} rejected" if self.rejected else ""
        speed = f", {self._speed()}" if self.tokens else ""
        passed = f"{_clock(self.seconds)} passed, {_clock(left)} left"
        say(f"{self._verb}: {self.done}/{self.total} rows{rejected}{speed}, {passed}")


def ticking(rows: Iterable[T], verb: str) -> Iterator[T]:
    """Yield `rows`, and print on stderr now and then how many there have been."""
    began = shown_at = time.monotonic()
    for number, row in enumerate(rows, 1):
        yield row
        now = time.monotonic()
        if now - shown_at >= _LINE_EVERY_S:
            shown_at = now
            say(f"{verb}: {number} rows, {_clock(now - began)} passed")


def _clock(seconds: float) -> str:
    if seconds != seconds:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def figure_table(*texts: str, figures: Iterable[str], title: str | None = None) -> Table:
    """Return an empty table with columns of texts, then of figures; long cells are folded."""
    columns = [Column(Text(name), overflow="fold") for name in texts]
    columns += [Column(name, justify="right", overflow="fold") for name in figures]
    return Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
