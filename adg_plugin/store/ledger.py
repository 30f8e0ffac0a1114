"""A folder of parts with one writer: results are buffered, written as parts, and small parts merged.

Answers are kept so, and in measures/NAME/part-*.parquet what a side model found of each row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.store.files import make_folder, writing
from adg_plugin.store.names import MEASURES
from adg_plugin.store.parts import Inventory, merge_small, row_groups, take_stock, write_part
from adg_plugin.store.reader import RunReader
from adg_plugin.store.records import RowResult
from adg_plugin.store.staging import digests, row_digest

SMALL_PARTS = 64  # more than these, and closing merges them
# Measures are written when so many are buffered, or so many seconds have passed.
ROWS_PER_PART = 2048
FLUSH_S = 20.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What a side model found of a row. With a `reason` there are no values."""

    id: str
    key: bytes  # 16-byte hash of all that produces it
    values: Mapping[str, float | str]  # by column of the measure's schema
    num_tokens: int  # that were read or generated; 0 with a `reason`
    reason: str | None = None


R = TypeVar("R", RowResult, Finding)


class Ledger(Generic[R]):
    """Results by row, each row once. The holder of the run folder's lock has it; leaving a `with` closes it.

    Args:
        folder: of the parts; made with the first of them.
        schema: of the parts; its first columns are `id` and `key`.
        record: a result -> its row in that schema.
        rows_per_part: results are written when so many are buffered,
        flush_s: or when so many seconds have passed since the last time.

    Attributes:
        stock: the verified parts, and which rows they and the buffer hold.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        record: Callable[[R], dict[str, Any]],
        *,
        rows_per_part: int,
        flush_s: float,
    ) -> None:
        self.folder, self._schema = folder, schema
        self._record: Callable[[R], dict[str, Any]] = record
        self._rows_per_part, self._flush_s = rows_per_part, flush_s
        self.stock: Inventory = take_stock(folder, repair=True)
        self._buffer: list[R] = []
        self._flushed_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.flush()
        if error is None:
            self.compact(more_than=SMALL_PARTS)

    def __contains__(self, row: R) -> bool:
        return row_digest(row.id, row.key) in self.stock.completed

    def append(self, result: R) -> None:
        """Take one result, and write the buffered ones when there are enough of them or it is time.

        A row that already has a result keeps that one.

        Raises:
            StoreError: a part cannot be written. The buffered results stay in memory; `flush` tries again.
        """
        if result in self:
            return
        self.stock.completed.add(row_digest(result.id, result.key))
        self._buffer.append(result)
        if len(self._buffer) >= self._rows_per_part or time.monotonic() - self._flushed_at >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Write the buffered results as one part, which survives a power cut; after a StoreError they stay buffered."""
        if self._buffer:
            make_folder(self.folder)
            table = pa.Table.from_pylist([self._record(result) for result in self._buffer], self._schema)
            self.stock.parts.append(write_part(self.folder, self.stock.next_sequence, table))
            self._buffer.clear()
        self._flushed_at = time.monotonic()

    def compact(self, *, more_than: int) -> int:
        """Merge small neighbours if over `more_than`; return how many fewer parts. A StoreError loses no result."""
        if sum(part.rows < self._rows_per_part for part in self.stock.parts) <= more_than:
            return 0
        return merge_small(self.stock, self.folder, small_rows=self._rows_per_part, schema=self._schema)

    def drop_rows(
        self, column: str, is_bad: Callable[[pa.Table], npt.NDArray[np.bool_]], among: Container[bytes]
    ) -> int:
        """Write parts anew without their bad rows, which then have no result, and return how many those are.

        Args:
            column: by which a row is bad.
            is_bad: gets a table with that column, and returns of which rows (N,).
            among: the `row_digest`s of the rows that may go; results under other keys stay.

        Raises:
            StoreError: a part cannot be read or written; the bad rows are in it still.
        """
        self.flush()
        dropped = 0
        for part in list(self.stock.parts):
            bad = np.concatenate([is_bad(table) for table in row_groups(part, [column], self._schema)])
            if not bad.any():
                continue
            table = pa.concat_tables(row_groups(part, self._schema.names, self._schema))
            bad &= np.array([digest in among for digest in digests(table)])
            if not bad.any():
                continue
            at = self.stock.parts.index(part)
            kept = table.filter(pa.array(~bad))
            self.stock.parts[at : at + 1] = [write_part(self.folder, part.sequence, kept)] if len(kept) else []
            self.stock.completed.difference_update(digests(table.filter(pa.array(bad))))
            with writing(part.path):
                part.path.unlink()
            dropped += int(bad.sum())
        return dropped

    def drop_parts_within(self, completed: set[bytes]) -> None:
        """Delete parts whose rows are all among `completed` (`row_digest`s); a StoreError where that fails."""
        self.flush()
        kept = []
        for part in self.stock.parts:
            held = {digest for table in row_groups(part, ["id", "key"]) for digest in digests(table)}
            if held <= completed:
                with writing(part.path):
                    part.path.unlink()
                self.stock.completed -= held
            else:
                kept.append(part)
        self.stock.parts = kept


def measure_schema(*values: tuple[str, pa.DataType]) -> pa.Schema:
    """Return the columns of a measure's parts, of which those that a model finds are given."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("key", pa.binary(16), nullable=False),  # of the model, its type and what it was asked
            *values,
            ("tokens", pa.int32()),
            ("reason", pa.string()),
        ]
    )


def open_measures(run: RunReader, name: str, schema: pa.Schema) -> Ledger[Finding]:
    """Return the measures of that name, their parts verified and cleared of what a killed process left.

    Args:
        run: the run folder, held by this process.

    Raises:
        StoreError: they cannot be read or mended.
    """

    def record(finding: Finding) -> dict[str, Any]:
        columns = {"id": finding.id, "key": finding.key, "tokens": finding.num_tokens, "reason": finding.reason}
        return columns | dict(finding.values)

    return Ledger(run.path / MEASURES / name, schema, record, rows_per_part=ROWS_PER_PART, flush_s=FLUSH_S)


def read_measures(run: RunReader, name: str, schema: pa.Schema, wanted: Sequence[bytes]) -> pa.Table:
    """Return what is measured under that name, a row for each `row_digest` in `wanted`, in order, null if nothing.

    Damaged parts are left out; what a writer still buffers is not seen.

    Raises:
        StoreError: a part cannot be read.
    """
    parts = take_stock(run.path / MEASURES / name, repair=False).parts
    tables = [table for part in parts for table in row_groups(part, schema.names, schema)]
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    places = {digest: place for place, digest in enumerate(digests(table))}
    return table.take(pa.array([places.get(digest) for digest in wanted], pa.int64()))
