"""What a side model is asked about rows, whatever it is: in windows of rows, and in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from typing import Generic, Protocol, TypeVar

import torch

from adg_plugin.engines.failures import Identified
from adg_plugin.engines.forward.memory import fitting
from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY
from adg_plugin.store import RunReader
from adg_plugin.store.ledger import Finding

_WINDOW_ROWS = 256  # tokenised and sorted by length together

T = TypeVar("T")
R = TypeVar("R")
Row = TypeVar("Row", bound=Identified)
Input = TypeVar("Input")
Answer = tuple[Mapping[str, float | str], int]  # values by name, and how many tokens were read or generated


class Batches(Generic[Input]):
    """Cuts work into batches that fit into memory.

    Args:
        most: of a batch, in the unit of the inputs' width: their number times the greatest of their widths. Halved when
            memory runs out; raised to half of this again when even one input does not fit, for that one is gone then.
        width: >= 1, what one input takes of a batch.
        device: of the model that does the work.
        by_number: `most` counts the inputs, whatever their width.
    """

    def __init__(
        self, most: int, width: Callable[[Input], int], device: torch.device, *, by_number: bool = False
    ) -> None:
        self._first = self._most = most
        self._width, self._device, self._by_number = width, device, by_number

    def run(
        self, items: Iterable[tuple[T, Input]], work: Callable[[Sequence[Input]], Sequence[R]]
    ) -> Iterator[tuple[tuple[T, ...], Sequence[R] | None]]:
        """Yield batches and their results as soon as they are there, the widest inputs first.

        Args:
            items: inputs in any order, each with whose it is.
            work: a batch of inputs -> a result for each of them.

        Yields:
            Whose inputs they are, and the results; None with a single one that does not fit even alone.
        """
        order = sorted(items, key=lambda item: self._width(item[1]), reverse=True)
        start = 0
        while start < len(order):
            widest = 1 if self._by_number else self._width(order[start][1])
            owners, batch = zip(*order[start : start + max(1, self._most // widest)], strict=True)
            results = fitting(work, batch, self._device)
            if results is None and len(batch) > 1:
                self._most = len(batch) * widest // 2
                continue
            if results is None:
                self._most = max(1, self._first // 2)
            yield owners, results
            start += len(batch)


class JudgeModel(Protocol[Input]):
    """A model in memory; `batches` cuts the inputs into batches that fit."""

    batches: Batches[Input]

    def answers(self, batch: Sequence[Input], /) -> Sequence[Answer]:
        """Return an answer to each input. It depends on no other input, up to rounding."""
        ...


class Judge(Protocol[Row, Input]):
    """What is asked of which model about the rows of a run folder."""

    def rows(self, run: RunReader, /) -> Iterator[Row]:
        """Yield the staged prompts that are to be measured, in the pool's order."""
        ...

    def key(self, row: Row, /) -> bytes:
        """Return 16 bytes that stand for all that produces what is found of a row."""
        ...

    def inputs(self, rows: Sequence[Row], /) -> Iterable[Sequence[Input] | str]:
        """Yield for each row its inputs, at least one, or the reason why there is nothing to ask."""
        ...

    def load(self) -> JudgeModel[Input]:
        """Return the model."""
        ...


@dataclass(slots=True)
class _Asked:
    id: str
    key: bytes
    unanswered: int  # inputs
    values: dict[str, float | str] = field(default_factory=dict)
    tokens: int = 0
    reason: str | None = None

    def add(self, answer: Answer | None) -> Finding | None:
        """Take the answer to one input, None where it does not fit, and return what is found after the last of them."""
        self.unanswered -= 1
        if answer is None:
            self.reason = OUT_OF_MEMORY
        else:
            self.values |= answer[0]
            self.tokens = max(self.tokens, answer[1])
        if self.unanswered:
            return None
        if self.reason is None and not all(isfinite(v) for v in self.values.values() if isinstance(v, float)):
            self.reason = NON_FINITE
        if self.reason is not None:
            return Finding(self.id, self.key, {}, 0, self.reason)
        return Finding(self.id, self.key, self.values, self.tokens)


def judged(
    judge: Judge[Row, Input], rows: Iterable[Row], take: Callable[[str], None] = lambda _: None
) -> Iterator[list[Finding]]:
    """Yield what the judge finds of each row, some rows at a time as soon as it is there; the model is loaded first.

    Args:
        rows: taken 256 at a time.
        take: gets the id of each row that reaches the model.
    """
    model, remaining = judge.load(), iter(rows)
    while window := list(islice(remaining, _WINDOW_ROWS)):
        refused: list[Finding] = []
        items: list[tuple[_Asked, Input]] = []
        for row, inputs in zip(window, judge.inputs(window), strict=True):
            if isinstance(inputs, str):
                refused.append(Finding(row.id, judge.key(row), {}, 0, inputs))
                continue
            take(row.id)
            asked = _Asked(row.id, judge.key(row), len(inputs))
            items += [(asked, item) for item in inputs]
        if refused:
            yield refused
        for batch, answers in model.batches.run(items, model.answers):
            each = (None,) if answers is None else answers  # without answers, an input is alone in its batch
            found = [asked.add(answer) for asked, answer in zip(batch, each, strict=True)]
            yield [finding for finding in found if finding is not None]
