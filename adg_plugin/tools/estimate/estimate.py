"""`adg estimate`: from a few timed batches to what all of them take. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

_LEAST_ERROR = 0.1  # relative: machines are not steadier than that
_FEWEST_ANSWERS = 3  # of `num_samples`


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that were sampled together.

    Attributes:
        seconds: that it took, until the last answer was through.
        answers: tokens of each answer.
    """

    rows: int
    seconds: float
    answers: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a selection takes, from nothing; `left_s` of it where the run folder stands.

    Attributes:
        rows: to be sampled, done or not.
        measured: rows that were sampled for the estimate, and are kept.
        seconds: by stage: loading, staging, sampling, choosing.
        low_s: with `high_s`, the interval of the total.
        left_s: of the total, what is still to be done.
        answer_tokens: that will be drawn, all rows together.
        prompt_tokens: that will be read.
        cut: share of the measured answers that reached the limit.
        memory_bytes: the most that is held at once.
        device_bytes: of an accelerator; 0 without one.
        disk_bytes: of the run folder.
        what_if: factor on the time of sampling, by setting.
        devices: that were at work at once; what they cost is so many times their time.
    """

    rows: int
    measured: int
    seconds: dict[str, float]
    low_s: float
    high_s: float
    left_s: float
    answer_tokens: float
    prompt_tokens: float
    cut: float
    memory_bytes: float
    device_bytes: float
    disk_bytes: float
    what_if: dict[str, float]
    devices: int = 1

    @property
    def total_s(self) -> float:
        """Seconds from nothing to the choice."""
        return sum(self.seconds.values())

    @property
    def dominant(self) -> str:
        """The stage that takes longest."""
        return max(self.seconds, key=lambda stage: self.seconds[stage])

    def summary(self, gpu_hour_price: float | None = None) -> dict[str, Any]:
        """Return the figures, for JSON; with a price of an hour of one device, what they cost."""
        found = {**asdict(self), "total_s": self.total_s, "dominant": self.dominant}
        if gpu_hour_price is not None:
            each = gpu_hour_price * self.devices / 3600
            found["cost"] = {"total": self.total_s * each, "low": self.low_s * each, "high": self.high_s * each}
        return found


def extrapolate(
    chunks: Sequence[Chunk],
    *,
    rows: int,
    pending: int,
    prompt_tokens: float,
    num_samples: int,
    max_new_tokens: int,
    loading_s: float,
    staging_s: float,
    choosing_s: float,
    memory_bytes: float,
    disk_bytes: float,
    device_bytes: float = 0.0,
    devices: int = 1,
) -> Estimate:
    """Return what all rows take.

    A run is a start and an end, where the batch is not full, and so much per row between them: the first falls out
    of the difference between a batch and two of them.

    Args:
        chunks: the first only warms up, the last is the largest.
        rows: of the pool.
        pending: of these, without answers before the chunks were measured.
        prompt_tokens: of all rows, which with the rest is measured once, not per batch.
    """
    lengths = np.concatenate([chunk.answers for chunk in chunks])
    measured = sum(chunk.rows for chunk in chunks)
    per_row, fixed, upper = _line(chunks)
    # Two standard errors of the mean length of an answer, relative to it; rows are what is independent.
    spread = 2 * lengths.std() / max(1e-9, lengths.mean()) / np.sqrt(max(1, len(lengths) // num_samples))
    error = max(_LEAST_ERROR, float(spread))
    sampling = fixed + per_row * rows
    rest = loading_s + staging_s + choosing_s
    left = max(0, pending - measured)
    return Estimate(
        rows=rows,
        measured=measured,
        seconds={"loading": loading_s, "staging": staging_s, "sampling": sampling, "choosing": choosing_s},
        low_s=rest + sampling * max(0.0, 1 - error),
        high_s=rest + max(sampling, upper * rows) * (1 + error),
        left_s=choosing_s + (loading_s + fixed + per_row * left if left else 0.0),
        answer_tokens=float(lengths.sum()) / measured * rows,
        prompt_tokens=prompt_tokens,
        cut=float(np.mean(lengths >= max_new_tokens)),
        memory_bytes=memory_bytes,
        device_bytes=device_bytes,
        disk_bytes=disk_bytes,
        what_if=_what_if(lengths, num_samples, max_new_tokens),
        devices=devices,
    )


def _line(chunks: Sequence[Chunk]) -> tuple[float, float, float]:
    """Return seconds per row in the midst of a run, those of its ends, and seconds per row of the last chunk alone."""
    *_, one, two = chunks
    alone = two.seconds / two.rows
    if two.rows <= one.rows:
        return alone, 0.0, alone
    # A batch that was held up by something else must not turn the line upside down.
    per_row = float(np.clip((two.seconds - one.seconds) / (two.rows - one.rows), 0.5 * alone, alone))
    return per_row, two.seconds - per_row * two.rows, alone


def _what_if(lengths: npt.NDArray[np.int64], num_samples: int, max_new_tokens: int) -> dict[str, float]:
    """Return about how many times as long sampling would take, by setting: it goes with the tokens that are drawn."""
    found = {}
    if num_samples > _FEWEST_ANSWERS:
        found[f"num_samples: {_FEWEST_ANSWERS}"] = _FEWEST_ANSWERS / num_samples
    if max_new_tokens > 1:
        half = max_new_tokens // 2
        found[f"max_new_tokens: {half}"] = float(np.minimum(lengths, half).sum() / max(1, lengths.sum()))
    return found


def print_estimate(about: Estimate, console: Console, price: float | None = None) -> None:
    """Print the figures, a line each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("time", f"{_clock(about.total_s)} ({_clock(about.low_s)} to {_clock(about.high_s)})")
    table.add_row("", ", ".join(f"{name} {_clock(seconds)}" for name, seconds in about.seconds.items()))
    table.add_row("still to do", f"{_clock(about.left_s)}: the {about.measured:,} measured rows are kept")
    table.add_row("rows", f"{about.rows:,}")
    table.add_row("tokens", f"{about.answer_tokens:,.0f} drawn, {about.prompt_tokens:,.0f} of prompts")
    device = f", {_bytes(about.device_bytes)} on the device" if about.device_bytes else ""
    table.add_row("memory", f"{_bytes(about.memory_bytes)}{device}")
    table.add_row("disk", _bytes(about.disk_bytes))
    if price is not None:
        cost = about.summary(price)["cost"]
        table.add_row("cost", f"{cost['total']:.2f} ({cost['low']:.2f} to {cost['high']:.2f})")
    table.add_row("most of it", _advice(about))
    console.print(table)


def _advice(about: Estimate) -> str:
    if about.dominant != "sampling":
        return f"{about.dominant}, whatever the settings of sampling"
    changes = ", ".join(f"{setting} takes {factor:.0%} of it" for setting, factor in about.what_if.items())
    cut = f"; {about.cut:.0%} of the answers reach the limit" if about.cut else ""
    return f"sampling: {changes}{cut}"


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
