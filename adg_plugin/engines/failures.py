"""Stops where it is not the rows that are wrong: without memory for several, or with most numbers not finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from adg_plugin.console import SamplingProgress
from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY, TRANSIENT
from adg_plugin.errors import NumericalError, OutOfMemoryError, ServerError
from adg_plugin.store.ledger import Finding
from adg_plugin.store.records import RowResult

_UNFIT_ROWS = 3  # without memory, or refused, one after the other


class Identified(Protocol):
    """A row."""

    @property
    def id(self) -> str: ...  # noqa: D102


T = TypeVar("T", bound=Identified)
R = TypeVar("R", RowResult, Finding)  # what became of a row


class FailureGuard:
    """Watches what becomes of the rows that a model is given.

    NaN and infinity are counted in batches of the order in which the model takes the rows, not of that in which they
    finish: a row of NaN ends sooner than others, and a few of them would look like most.

    Args:
        memory: what a user can do where rows do not fit.
        numbers: what a user can do where rows give NaN or infinity.
        kept: a sentence about what is there already.
        batch_rows: of these rows, not most may be without finite numbers.
        in_turn: results come in the order in which the rows ended. Else several come at once, those that failed
            together, and only many mean something.
    """

    def __init__(self, *, memory: str, numbers: str, kept: str, batch_rows: int = 32, in_turn: bool = False) -> None:
        self._memory, self._numbers, self._kept = memory, numbers, kept
        self._batch_rows, self._in_turn = batch_rows, in_turn
        self._batch_of: dict[str, int] = {}  # of the rows in flight
        self._done: Counter[int] = Counter()
        self._bad: Counter[int] = Counter()
        self._taken = self._unfit = self._fit = 0

    def take(self, id: str) -> None:
        """Remember which batch a row belongs to that the model is given now."""
        self._batch_of[id] = self._taken // self._batch_rows
        self._taken += 1

    def taking(self, rows: Iterable[T]) -> Iterator[T]:
        """Yield the rows, each of which is taken as it goes to the model."""
        for row in rows:
            self.take(row.id)
            yield row

    def watched(self, results: Iterable[R], progress: SamplingProgress, stats: dict[str, Any]) -> Iterator[R]:
        """Yield the results that are to be stored, and count all.

        Args:
            results: some may be of rows that the model was never given.
            stats: gets `skipped`, the reason of each row that is not stored, by id: the next run tries it again.

        Raises:
            NumericalError: most rows of a batch, or of fewer where there are no more, gave NaN or infinity.
            OutOfMemoryError, ServerError: several consecutive rows do not fit even at batch size 1, or are refused.
        """
        for result in results:
            if result.reason in TRANSIENT:
                stats.setdefault("skipped", {})[result.id] = result.reason
                self._unfit += 1
                if self._unfit >= _UNFIT_ROWS and (self._in_turn or self._unfit > self._fit):
                    if result.reason == OUT_OF_MEMORY:
                        raise OutOfMemoryError(
                            f"out of memory on {_UNFIT_ROWS} consecutive rows at batch size 1: {self._memory}. "
                            f"{self._kept}"
                        )
                    raise ServerError(f"most rows were refused; the warnings say why. {self._kept}")
            else:
                self._fit += result.id in self._batch_of
                self._unfit = 0 if self._in_turn else self._unfit
                yield result
            progress.add(result.num_tokens, rejected=result.reason is not None)
            if (batch := self._batch_of.pop(result.id, None)) is not None:
                self._done[batch] += 1
                self._bad[batch] += result.reason == NON_FINITE
                if self._done[batch] == self._batch_rows:
                    self._check(batch)
        if self._taken < self._batch_rows:
            self._check(0)

    def _check(self, batch: int) -> None:
        bad, rows = self._bad.pop(batch, 0), self._done.pop(batch, 0)
        if bad > rows / 2:
            raise NumericalError(f"{bad} of {rows} rows gave NaN or infinity: {self._numbers}")
