"""Stops a run whose numbers are not finite: rows by the dozen rejected, one after the other, would say too little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

from adg_plugin.engines.forward.results import NON_FINITE
from adg_plugin.errors import NumericalError
from adg_plugin.store.records import Prompt, RowResult, Sampled

T = TypeVar("T", Prompt, Sampled)

_BATCH_ROWS = 32


class NonFiniteGuard:
    """Counts rejected rows in batches of the order in which the engine took them.

    Not of the order in which they finish: a row of NaN ends sooner than others, and a few of them would look like most.
    """

    def __init__(self) -> None:
        self._batch_of: dict[str, int] = {}  # of the rows in flight
        self._done: Counter[int] = Counter()
        self._bad: Counter[int] = Counter()
        self._taken = 0

    def taking(self, prompts: Iterable[T]) -> Iterator[T]:
        """Yield the prompts, and remember which batch each belongs to."""
        for prompt in prompts:
            self._batch_of[prompt.id] = self._taken // _BATCH_ROWS
            self._taken += 1
            yield prompt

    def add(self, result: RowResult) -> None:
        """Count one result.

        Raises:
            NumericalError: it completes a batch most of which gave NaN or infinity.
        """
        batch = self._batch_of.pop(result.id)
        self._done[batch] += 1
        self._bad[batch] += result.reason == NON_FINITE
        if self._done[batch] == _BATCH_ROWS:
            self._check(self._bad.pop(batch), self._done.pop(batch))

    def finish(self) -> None:
        """Count what is left as a batch, where it is all there was.

        Raises:
            NumericalError: most of it gave NaN or infinity.
        """
        if self._taken < _BATCH_ROWS:
            self._check(self._bad[0], self._done[0])

    def _check(self, bad: int, rows: int) -> None:
        if bad > rows / 2:
            raise NumericalError(
                f"{bad} of {rows} rows gave NaN or infinity: set dtype to bfloat16 or float32 (float16 overflows in "
                "many models), or check the model's weights"
            )
