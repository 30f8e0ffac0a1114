"""What the commands share: progress of a long stage on stderr, the console of results, arguments and options."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Self, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

T = TypeVar("T")

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
        self._console = Console(stderr=True)
        self._verb = verb
        self._show = show
        self._bar: Progress | None = None
        if show and self._console.is_terminal:
            self._bar = Progress(
                TextColumn(verb),
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
        self._console.print(
            f"{self._verb}: {self.done}/{self.total} rows{rejected}{speed}, "
            f"{_clock(self.seconds)} passed, {_clock(left)} left",
            highlight=False,
            soft_wrap=True,
        )


def ticking(rows: Iterable[T], verb: str) -> Iterator[T]:
    """Yield `rows`, and print on stderr now and then how many there have been."""
    began = shown_at = time.monotonic()
    for number, row in enumerate(rows, 1):
        yield row
        now = time.monotonic()
        if now - shown_at >= _LINE_EVERY_S:
            shown_at = now
            print(f"{verb}: {number} rows, {_clock(now - began)} passed", file=sys.stderr)


def _clock(seconds: float) -> str:
    if seconds != seconds:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def figure_table(*texts: str, figures: Iterable[str], title: str | None = None) -> Table:
    """Return an empty table with columns of texts, then of figures; long cells are folded."""
    columns = [Column(name, overflow="fold") for name in texts]
    columns += [Column(name, justify="right", overflow="fold") for name in figures]
    return Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))


def result_console() -> Console:
    """Return a console for stdout: as wide as its terminal, or as COLUMNS says; without either, 80."""
    return Console(width=None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else 80)
