"""What a side model is asked about rows, whatever it is: in windows of rows, and in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from typing import Protocol, TypeVar

from adg_plugin.engines.failures import Identified
from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY
from adg_plugin.engines.judges.batches import Batches
from adg_plugin.store import RunReader
from adg_plugin.store.measures import Finding

_WINDOW_ROWS = 256  # tokenised and sorted by length together

Row = TypeVar("Row", bound=Identified)
Input = TypeVar("Input")
Given = TypeVar("Given", contravariant=True)
Answer = tuple[Mapping[str, float | str], int]  # values by name, and how many tokens were read or generated


class JudgeModel(Protocol[Given]):
    """A model in memory; `batches` cuts the inputs into batches that fit."""

    batches: Batches

    def width(self, item: Given, /) -> int:
        """Return what an input takes of a batch."""
        ...

    def answers(self, batch: Sequence[Given], /) -> Sequence[Answer]:
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
        for batch, answers in model.batches.run(
            items, lambda item: model.width(item[1]), lambda some: model.answers([item for _, item in some])
        ):
            each = (None,) if answers is None else answers  # without answers, an input is alone in its batch
            found = [asked.add(answer) for (asked, _), answer in zip(batch, each, strict=True)]
            yield [finding for finding in found if finding is not None]
