"""What a side model finds of every row: asked once, kept in the run folder, stopped where it is not the rows."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.config.schema import ADGConfig
from adg_plugin.console import SamplingProgress
from adg_plugin.data.cells import Reason
from adg_plugin.selectors.base import Selector, Task
from adg_plugin.selectors.candidates import Candidates, Floats, Pick, Picked, Why, without
from adg_plugin.store import Rejection, RunFolder, RunReader
from adg_plugin.store.ledger import Finding, open_measures, read_measures
from adg_plugin.store.staging import row_digest

if TYPE_CHECKING:
    from adg_plugin.engines.judges.judge import Input, Judge, Row
    from adg_plugin.engines.models.loading import Source

logger = logging.getLogger(__name__)

NOT_MEASURED = "not_measured"

_WATCHED_ROWS = 256  # fewer may all be of a kind


@dataclass(frozen=True, slots=True)
class Measure:
    """What is kept of each row, and how."""

    name: str  # of its folder
    schema: pa.Schema  # see `adg_plugin.store.ledger.measure_schema`
    memory: str  # what a user can do where rows do not fit
    numbers: str  # what a user can do where rows give NaN or infinity
    verb: str = "scoring"  # what the model does, for the progress
    each_batch: bool = False  # each one is on the disk before the next begins: an answer in words takes long


def fill_measure(run: RunFolder, measure: Measure, judge: Judge[Row, Input], *, show: bool) -> dict[str, Any]:
    """Measure the prompts of a run folder that have no result yet, and return what it took.

    Args:
        judge: what is asked of which model; loaded only if there is something to ask.

    Returns:
        `rows` that had no result, of `total`; where there were any `seconds` and `tokens`; where memory was short
        `skipped`, the reason of each row that is not stored, by id.

    Raises:
        ModelError: the model cannot be used.
        NumericalError: most rows give NaN or infinity.
        OutOfMemoryError: several consecutive rows do not fit even at batch size 1.
        StoreError: no pool is staged, or a file cannot be read or written; what is measured is kept.
    """
    with open_measures(run, measure.name, measure.schema) as measures:
        for sentence in measures.stock.damage:
            logger.warning("%s", sentence)

        def is_pending(row: Row) -> bool:
            return row_digest(row.id, judge.key(row)) not in measures.stock.completed

        total = pending = 0
        for row in judge.rows(run):
            total += 1
            pending += is_pending(row)
        stats: dict[str, Any] = {"rows": pending, "total": total}
        if not pending:
            return stats
        from adg_plugin.engines.failures import FailureGuard
        from adg_plugin.engines.judges.judge import judged

        guard = FailureGuard(
            memory=measure.memory, numbers=measure.numbers, kept="What is measured is kept", batch_rows=_WATCHED_ROWS
        )

        def findings() -> Iterator[Finding]:
            for batch in judged(judge, filter(is_pending, judge.rows(run)), guard.take):
                yield from batch
                if measure.each_batch:
                    measures.flush()

        with SamplingProgress(total, total - pending, verb=measure.verb, show=show) as progress:
            for finding in guard.watched(findings(), progress, stats):
                measures.append(finding)
        return stats | {"seconds": progress.seconds, "tokens": progress.tokens}


def stored_measure(run: RunReader, measure: Measure, judge: Judge[Row, Input], rows: Iterable[Row]) -> pa.Table:
    """Return what is stored of each row, in order, else the reason `not_measured`; a StoreError for a damaged file."""
    ids: list[str] = []
    wanted: list[bytes] = []
    for row in rows:
        ids.append(row.id)
        wanted.append(row_digest(row.id, judge.key(row)))
    table = read_measures(run, measure.name, measure.schema, wanted)
    reasons = pc.if_else(pc.is_null(table["id"]), NOT_MEASURED, table["reason"])
    table = table.set_column(table.column_names.index("reason"), "reason", reasons)
    return table.set_column(table.column_names.index("id"), "id", pa.array(ids, pa.string()))


def text_key(recipe: bytes, *texts: str | bytes) -> bytes:
    """Return the 16-byte key of what a recipe's digest and some texts produce; bytes are texts in UTF-8."""
    hashed = hashlib.blake2b(recipe, digest_size=16)
    for text in texts:
        data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
        hashed.update(len(data).to_bytes(8, "little"))  # where one ends and the next begins
        hashed.update(data)
    return hashed.digest()


def not_measured(reason: str, who: str, measure: Measure) -> str:
    """Return the sentence for a row of which a model gave nothing that can be used."""
    from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY

    return {
        NON_FINITE: f"{who} gave NaN or infinity: {measure.numbers}",
        OUT_OF_MEMORY: f"{who} has no memory for it, even alone: {measure.memory}; the next run tries it again",
        NOT_MEASURED: f"{who} has not looked at it: run the same command again",
        Reason.UNKNOWN_TOKEN: f"{who} has no embedding for one of its tokens: use the model's own tokenizer",
        Reason.NO_INSTRUCTION: f"its instruction is only white space, and {who} judges both: repair the row",
    }[reason]


class ByMeasure(Selector, ABC):
    """The highest scores that are made of what a model finds of each row by itself."""

    measure: ClassVar[Measure]
    asked: ClassVar[str]  # the setting that names the model
    parts: ClassVar[Mapping[str, str]] = {}  # which column of the measure stands beside the score, by its name there

    @abstractmethod
    def judge(self, config: ADGConfig, source: Source) -> Judge[Any, Any]:
        """Return what is asked of the model, not loaded; a ModelError where it cannot be used."""

    @abstractmethod
    def score(self, found: pa.Table) -> Floats:
        """Return the scores (N,) of N rows, higher is better, from their columns of the measure."""

    def refused(self, score: float) -> Why | None:
        """Return why a row with this score may not be chosen; None: it may."""
        return None

    def unmeasured(self, reason: str, who: str, judge: Any, row: int) -> str:
        """Return the sentence for a row without a score, the judge's `row`th."""
        return not_measured(reason, who, self.measure)

    def fill(self, run: RunFolder, config: ADGConfig, source: Source, *, show: bool) -> dict[str, Any]:
        """Measure what is not stored."""
        return fill_measure(run, self.measure, self.judge(config, source), show=show)

    def usable(self, rows: Candidates, task: Task) -> tuple[Candidates, Sequence[Rejection], Pick]:
        """Return the rows with a score that may be chosen, the others with their reasons, and how it chooses."""
        assert task.source is not None
        judge, who = self.judge(task.config, task.source), f"{self.asked} {getattr(task.config, self.asked)!r}"
        stored = stored_measure(task.run, self.measure, judge, judge.rows(task.run))
        places = pc.index_in(pa.array(rows.ids, pa.string()), stored["id"])
        found = stored.take(places)
        scores = self.score(found)

        def why(row: int, reason: str | None) -> Why | None:
            if reason is None:
                return self.refused(float(scores[row]))
            reason = task.skipped.get(str(rows.ids[row]), reason)
            return reason, self.unmeasured(reason, who, judge, places[row].as_py())

        reasons = [why(row, reason) for row, reason in enumerate(found["reason"].to_pylist())]
        kept = np.array([reason is None for reason in reasons], dtype=bool)
        columns = {name: found[column].filter(kept).to_numpy() for name, column in self.parts.items()}
        return *without(rows, reasons), lambda _, budget: Picked.best(scores[kept], budget, columns)
