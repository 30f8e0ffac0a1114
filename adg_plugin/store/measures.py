"""measures/NAME/part-*.parquet: what other selection methods measured, each row once, safe against crashes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

import pyarrow as pa

from adg_plugin.store.files import sync_folder, writing
from adg_plugin.store.folder import SMALL_PARTS, RunFolder
from adg_plugin.store.parts import Inventory, Part, digests, row_groups, take_stock, write_part
from adg_plugin.store.reader import MEASURES, RunReader
from adg_plugin.store.staging import row_digest

_OF_ALL = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("key", pa.binary(16), nullable=False),  # of the model, its type and what it was asked
]
LIKELIHOODS = pa.schema(
    [*_OF_ALL, ("with_prompt", pa.float64()), ("alone", pa.float64()), ("tokens", pa.int32()), ("reason", pa.string())]
)
STYLES = pa.schema([*_OF_ALL, ("score", pa.float64()), ("tokens", pa.int32()), ("reason", pa.string())])
GRADES = pa.schema(
    [*_OF_ALL, ("score", pa.float64()), ("share", pa.float64()), ("tokens", pa.int32()), ("reason", pa.string())]
)
REPLIES = pa.schema([*_OF_ALL, ("answer", pa.string()), ("tokens", pa.int32()), ("reason", pa.string())])


class Asked(Protocol):
    """A row's id, and the key of what is asked of it."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def key(self) -> bytes: ...  # noqa: D102


class Result(Asked, Protocol):
    """A dataclass with what was asked of which row, and the other columns of a schema."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Measures:
    """The measures of one name in a run folder that this process holds. Leaving a `with` writes what is buffered.

    Attributes:
        completed: `row_digest` of every row that is measured, written or not.
        damage: sentences, each naming a part that was set aside.
    """

    def __init__(self, folder: Path, schema: pa.Schema, *, rows_per_part: int, flush_s: float) -> None:
        self._folder, self._schema, self._rows_per_part, self._flush_s = folder, schema, rows_per_part, flush_s
        self._stock: Inventory = take_stock(folder, repair=True)
        self._buffer: list[Result] = []
        self._flushed_at = time.monotonic()

    @classmethod
    def open(
        cls,
        run: RunFolder,
        name: str,
        schema: pa.Schema = LIKELIHOODS,
        *,
        rows_per_part: int = 2048,
        flush_s: float = 20.0,
    ) -> Self:
        """Return the measures of that name, their parts verified and cleared of what a killed process left.

        Args:
            run: the run folder, held by this process.
            name: of the measure, which is that of its folder.
            schema: of its results.
            rows_per_part: results are written when so many are buffered,
            flush_s: or when so many seconds have passed since the last time.

        Raises:
            StoreError: they cannot be read or mended.
        """
        return cls(run.path / MEASURES / name, schema, rows_per_part=rows_per_part, flush_s=flush_s)

    @property
    def completed(self) -> set[bytes]:
        """`row_digest` of every row that has a result, written or not."""
        return self._stock.completed

    @property
    def damage(self) -> list[str]:
        """Sentences, each naming a part that was set aside."""
        return self._stock.damage

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.flush()
        if error is None and len(self._stock.parts) > SMALL_PARTS:
            self._merge()

    def has(self, row: Asked) -> bool:
        """Return whether the row has a result, written or not."""
        return row_digest(row.id, row.key) in self.completed

    def append(self, result: Result) -> None:
        """Take one result, and write the buffered ones when there are enough of them or it is time.

        A row that already has a result keeps that one.

        Raises:
            StoreError: a part cannot be written. The buffered results stay in memory; `flush` tries again.
        """
        digest = row_digest(result.id, result.key)
        if digest in self.completed:
            return
        self.completed.add(digest)
        self._buffer.append(result)
        if len(self._buffer) >= self._rows_per_part or time.monotonic() - self._flushed_at >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Write the buffered results as one part. When it returns, they survive a power cut.

        Raises:
            StoreError: the part cannot be written; the results stay buffered.
        """
        if self._buffer:
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pylist([asdict(result) for result in self._buffer], self._schema)
            self._stock.parts.append(write_part(self._folder, self._stock.next_sequence, table))
            self._buffer.clear()
        self._flushed_at = time.monotonic()

    def _merge(self) -> None:
        """Make one part of all; the old ones go when it is on the disk."""
        merged = write_part(self._folder, self._stock.parts[0].sequence, _read(self._stock.parts, self._schema))
        with writing(self._folder):
            for part in self._stock.parts:
                part.path.unlink()
            sync_folder(self._folder)
        self._stock.parts = [merged]


def read_measures(run: RunReader, name: str, wanted: Sequence[bytes], schema: pa.Schema = LIKELIHOODS) -> pa.Table:
    """Return what is measured under that name, a row for each of `wanted` in its order, null where there is nothing.

    Damaged parts are left out; what a writer still buffers is not seen.

    Args:
        run: the run folder, held or not.
        name: of the measure.
        wanted: `row_digest`s.
        schema: of the results.

    Raises:
        StoreError: a part cannot be read.
    """
    table = _read(take_stock(run.path / MEASURES / name, repair=False).parts, schema)
    places = {digest: place for place, digest in enumerate(digests(table))}
    return table.take(pa.array([places.get(digest) for digest in wanted], pa.int64()))


def _read(parts: Sequence[Part], schema: pa.Schema) -> pa.Table:
    tables = [table for part in parts for table in row_groups(part, schema.names)]
    return pa.concat_tables(tables) if tables else schema.empty_table()
