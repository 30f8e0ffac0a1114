"""Rows that wait on the disk until they can be written: in the order asked for, or when all have been seen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.store.files import TEMPORARY, Sink, replacing
from adg_plugin.store.staging import groups


@contextmanager
def _spool(path: Path) -> Iterator[tuple[Sink, BinaryIO]]:
    """Yield a file next to `path`, to write and to read, that a killed process leaves as nothing but a leftover."""
    waiting = path.with_name(path.name + TEMPORARY)
    sink = Sink(waiting, shown=waiting)
    try:
        with waiting.open("rb") as file:
            yield sink, file
    finally:
        sink.close()
        waiting.unlink(missing_ok=True)


def write_chosen(prompts: Path, path: Path, ids: Sequence[str]) -> None:
    """Write the original rows of `ids`, in that order, one JSON object a line.

    The pool is read once, in its own order, into a spool next to `path`; the lines are then copied in the order asked
    for. Memory is 16 bytes and an id per chosen row, however long the rows are.

    Raises:
        StoreError: the pool cannot be read or the file not be written.
        ValueError: an id is given twice, or is not among the prompts.
    """
    rank = {id: index for index, id in enumerate(ids)}
    if len(rank) < len(ids):
        raise ValueError(f"{len(ids) - len(rank)} of the {len(ids)} chosen ids are repeated: give each once")
    wanted = pa.array(ids, pa.string())
    places = np.zeros((len(ids), 2), np.int64)  # start and length of each chosen row's line
    end = 0
    with _spool(path.with_name(path.name + ".spool")) as (spool, lines):
        for table in groups(prompts, ["id", "data"]):
            table = table.filter(pc.is_in(table["id"], value_set=wanted))
            of_group = bytearray()
            for id, data in zip(table["id"].to_pylist(), table["data"].to_pylist(), strict=True):
                line = _line(id, data)
                places[rank[id]] = end + len(of_group), len(line)
                of_group += line
            end += spool.write(bytes(of_group))
        if (places[:, 1] == 0).any():
            missing = ids[int(np.argmin(places[:, 1]))]
            raise ValueError(f"the chosen id {missing!r} is not among the prompts in {prompts}")
        with replacing(path) as sink:
            for start, size_bytes in places.tolist():
                lines.seek(start)
                sink.write(lines.read(size_bytes))


def _line(id: str, data: str) -> bytes:
    # Outside of strings a JSON text may break its lines, inside it cannot: blanks mean the same and keep it one line.
    data = data.replace("\r", " ").replace("\n", " ").strip()
    row = json.loads(data)
    if "id" not in row:
        rest = data[1:].lstrip()
        data = f'{{"id": {json.dumps(id, ensure_ascii=False)}{", " if row else ""}{rest}'
    return (data + "\n").encode()


class RowSpool:
    """Rows on the disk, next to a path, as JSON lines, until all of them have been seen."""

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, ExitStack()

    def __enter__(self) -> Self:
        self._spool, self._file = self._stack.enter_context(_spool(self._path))
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._stack.close()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Take a group of rows."""
        self._spool.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    def groups(self, size: int) -> Iterator[list[dict[str, Any]]]:
        """Yield all rows, `size` at a time, once."""
        while group := [json.loads(line) for line in islice(self._file, size)]:
            yield group
