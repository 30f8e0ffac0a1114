"""A folder of parts with one writer: results are buffered, written as parts, and small parts merged."""

from __future__ import annotations

import time
from pathlib import Path

from adg_plugin.store.files import writing
from adg_plugin.store.parts import Inventory, digests, merge_small, row_groups, take_stock, to_table, write_part
from adg_plugin.store.records import RowResult
from adg_plugin.store.staging import row_digest


class Ledger:
    """Results by row, each row once. The holder of the run folder's lock has it.

    Args:
        folder: of the parts; made with the first of them.
        rows_per_part: results are written when so many are buffered,
        flush_s: or when so many seconds have passed since the last time.

    Attributes:
        stock: the verified parts, and which rows they and the buffer hold.
    """

    def __init__(self, folder: Path, *, rows_per_part: int, flush_s: float) -> None:
        self.folder, self._rows_per_part, self._flush_s = folder, rows_per_part, flush_s
        self.stock: Inventory = take_stock(folder, repair=True)
        self._buffer: list[RowResult] = []
        self._flushed_at = time.monotonic()

    def __contains__(self, result: RowResult) -> bool:
        return row_digest(result.id, result.key) in self.stock.completed

    def append(self, result: RowResult) -> None:
        """Take one result of a row that has none yet.

        Raises:
            StoreError: a part cannot be written. The buffered results stay in memory; `flush` tries again.
        """
        self.stock.completed.add(row_digest(result.id, result.key))
        self._buffer.append(result)
        if len(self._buffer) >= self._rows_per_part or time.monotonic() - self._flushed_at >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Write the buffered results as one part. When it returns, they survive a power cut.

        Raises:
            StoreError: the part cannot be written; the results stay buffered.
        """
        if self._buffer:
            with writing(self.folder):
                self.folder.mkdir(exist_ok=True)
            part = write_part(self.folder, self.stock.next_sequence, to_table(self._buffer))
            self.stock.parts.append(part)
            self._buffer.clear()
        self._flushed_at = time.monotonic()

    def compact(self, *, more_than: int) -> int:
        """Merge neighbouring small parts if there are more than so many, and return how many fewer there are now.

        Raises:
            StoreError: a part cannot be written. No result is lost.
        """
        if sum(part.rows < self._rows_per_part for part in self.stock.parts) <= more_than:
            return 0
        return merge_small(self.stock, self.folder, small_rows=self._rows_per_part)

    def drop_parts_within(self, completed: set[bytes]) -> None:
        """Delete the parts all of whose rows are among `completed`, `row_digest`s.

        Raises:
            StoreError: a part cannot be read or deleted.
        """
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
