"""Progress of a long stage on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

_LINE_EVERY_S = 15.0


class SamplingProgress:
    """Counts rows and sampled tokens.

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._show:
            self._say()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._began

    @property
    def tokens_per_s(self) -> float:
        """Sampled tokens per second, so far."""
        return self.tokens / max(self.seconds, 1e-9)

    def add(self, tokens: int, *, rejected: bool) -> None:
        """Count one more row."""
        self.done += 1
        self.tokens += tokens
        self.rejected += rejected
        if self._bar:
            self._bar.update(self._task, completed=self.done, speed=self._speed())
        elif self._show and time.monotonic() - self._shown_at >= _LINE_EVERY_S:
            self._say()

    def _speed(self) -> str:
        return f" {self.tokens_per_s:,.0f} tokens/s ·" if self.tokens else ""

    def _say(self) -> None:
        self._shown_at = time.monotonic()
        fresh = self.done - self._first
        each = self.seconds / fresh if fresh else math.nan
        left = each * (self.total - self.done) if self.done < self.total else 0.0
        rejected = f", {self.rejected} rejected" if self.rejected else ""
        speed = f", {self.tokens_per_s:,.0f} tokens/s" if self.tokens else ""
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


RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run folder of a finished selection.")]


def result_console() -> Console:
    """Return a console for stdout: as wide as its terminal, or as COLUMNS says; without either, 80."""
    return Console(width=None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else 80)
