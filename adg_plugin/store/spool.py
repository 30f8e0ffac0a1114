"""Rows that wait on the disk until the types of all of them are known, and then become one Parquet file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from adg_plugin.store.files import TEMPORARY, Sink, replacing, writing


class TableSpool:
    """Groups of rows on the disk, each a table of its own types, until the types of all are known."""

    def __init__(self, path: Path) -> None:
        """Take a path next to which the groups wait, and where a killed process leaves nothing but a leftover."""
        self._path = path.with_name(path.name + TEMPORARY)
        self._groups: list[tuple[pa.Schema, int]] = []  # types and size in bytes
        self._error: Exception | None = None  # that of the first group that is no table; it counts if this one is used

    def __enter__(self) -> Self:
        self._sink = Sink(self._path, shown=self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sink.close()
        self._path.unlink(missing_ok=True)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Take a group of rows."""
        if self._error is not None:
            return
        try:
            table = pa.Table.from_pylist(rows)
        except (pa.ArrowException, OverflowError) as err:
            self._error = err
            return
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, table.schema) as stream:
            stream.write_table(table)
        self._groups.append((table.schema, self._sink.write(buffer.getvalue())))

    def write(self, path: Path, names: list[str]) -> None:
        """Write some of the columns as one Parquet file, a row group for each group.

        Raises:
            pa.ArrowException, OverflowError: the rows are no table.
            StoreError: it cannot be written.
        """
        if self._error is not None:
            raise self._error
        picked = [pa.schema([schema.field(name) for name in names]) for schema, _ in self._groups]
        schema = pa.unify_schemas(picked, promote_options="permissive")
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        writer = partial(pq.ParquetWriter, schema=schema, compression="zstd")
        with self._path.open("rb") as spool, replacing(path) as sink, writer(sink) as file:
            for _, size_bytes in self._groups:
                table = pa.ipc.open_stream(spool.read(size_bytes)).read_all().select(names)
                file.write_table(pa.Table.from_pylist(table.to_pylist(), schema))
