"""What selectors measure of every row, whatever it is: with progress, kept, and stopped where it is not the rows."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.console import SamplingProgress
from adg_plugin.store import RunFolder, RunReader
from adg_plugin.store.measures import open_measures, read_measures
from adg_plugin.store.staging import row_digest

if TYPE_CHECKING:
    from adg_plugin.engines.judges.judge import Input, Judge, Row
    from adg_plugin.store.measures import Finding

logger = logging.getLogger(__name__)

NOT_MEASURED = "not_measured"

_WATCHED_ROWS = 256  # fewer may all be of a kind


@dataclass(frozen=True, slots=True)
class Advice:
    """What a user can do where rows do not fit into `memory`, or give NaN or infinity (`numbers`)."""

    memory: str
    numbers: str


@dataclass(frozen=True, slots=True)
class Measure:
    """What is kept of each row, and how.

    Attributes:
        name: of its folder.
        schema: see `adg_plugin.store.measures.measure_schema`.
        verb: what the model does, for the progress.
        each_batch: whether each batch is on the disk before the next begins: an answer in words takes long.
    """

    name: str
    schema: pa.Schema
    advice: Advice
    verb: str = "scoring"
    each_batch: bool = False


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

        advice = measure.advice
        guard = FailureGuard(
            memory=advice.memory, numbers=advice.numbers, kept="What is measured is kept", batch_rows=_WATCHED_ROWS
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


def text_key(recipe: bytes, *texts: str) -> bytes:
    """Return the 16-byte key of what a recipe's digest and some texts produce."""
    hashed = hashlib.blake2b(recipe, digest_size=16)
    for text in texts:
        data = text.encode(errors="surrogatepass")
        hashed.update(len(data).to_bytes(8, "little"))  # where one ends and the next begins
        hashed.update(data)
    return hashed.digest()
