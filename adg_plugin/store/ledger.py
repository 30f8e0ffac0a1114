"""A folder of parts with one writer: results are buffered, written as parts, and small parts merged."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import pyarrow as pa

from adg_plugin.store.files import writing
from adg_plugin.store.parts import Inventory, digests, merge_small, row_groups, take_stock, write_part
from adg_plugin.store.staging import row_digest

SMALL_PARTS = 64  # more than these, and closing merges them


class Keyed(Protocol):
    """A row's id, and the hash of all that produces its result."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def key(self) -> bytes: ...  # noqa: D102


R = TypeVar("R", bound=Keyed)


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
        self.folder, self._schema, self._record = folder, schema, record
        self._rows_per_part, self._flush_s = rows_per_part, flush_s
        self.stock: Inventory = take_stock(folder, repair=True)
        self._buffer: list[R] = []
        self._flushed_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.flush()
        if error is None:
            self.compact(more_than=SMALL_PARTS)

    def __contains__(self, row: Keyed) -> bool:
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
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pylist([self._record(result) for result in self._buffer], self._schema)
            self.stock.parts.append(write_part(self.folder, self.stock.next_sequence, table))
            self._buffer.clear()
        self._flushed_at = time.monotonic()

    def compact(self, *, more_than: int) -> int:
        """Merge small neighbours if over `more_than`; return how many fewer parts. A StoreError loses no result."""
        if sum(part.rows < self._rows_per_part for part in self.stock.parts) <= more_than:
            return 0
        return merge_small(self.stock, self.folder, small_rows=self._rows_per_part, schema=self._schema)

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
