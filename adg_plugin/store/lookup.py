"""Results of some rows, from as few parts as can be; index.parquet says which part of a finished run holds each row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adg_plugin.store.assemble import read_pool
from adg_plugin.store.files import digest_file, reading, replacing
from adg_plugin.store.parts import SCHEMA, Inventory, Part, named_parts, row_groups, to_results
from adg_plugin.store.records import RowResult
from adg_plugin.store.staging import digests


def results_of(parts: Sequence[Part], wanted: set[bytes]) -> Iterator[RowResult]:
    """Yield the first result of each wanted row."""
    for table in first_rows(parts, wanted, SCHEMA.names):
        yield from to_results(table)


def first_rows(parts: Sequence[Part], wanted: set[bytes], columns: list[str]) -> Iterator[pa.Table]:
    """Yield columns (`id` and `key` among them) of the first result of each wanted row, by groups."""
    left = set(wanted)
    for table in itertools.chain.from_iterable(row_groups(part, columns) for part in parts):
        rows = []
        for row, digest in enumerate(digests(table)):
            if digest in left:
                left.discard(digest)
                rows.append(row)
        yield table.take(pa.array(rows, pa.int64()))
        if not left:
            return


class PartIndex:
    """Which part holds a row's result, for reading rows in another order than that in which they were written."""

    def __init__(self, stock: Inventory) -> None:
        self._parts = stock.parts
        self._part_of: dict[bytes, int] = {}
        for number, part in enumerate(stock.parts):
            for table in row_groups(part, ["id", "key"]):
                for digest in digests(table):
                    self._part_of.setdefault(digest, number)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._part_of

    def results(self, wanted: set[bytes]) -> Iterator[RowResult]:
        """Yield the first result of each wanted row; reads only the parts that hold one."""
        numbers = sorted({self._part_of[digest] for digest in wanted})
        return results_of([self._parts[number] for number in numbers], wanted)


def write_index(path: Path, prompts: Path, parts: Sequence[Part]) -> None:
    """Write each prompt's part number (`parts` by sequence, the first result counts); a StoreError if a file fails."""
    pool = read_pool(prompts)
    numbers = np.full(len(pool.ids), -1, np.int32)
    for part in reversed(parts):
        for table in row_groups(part, ["id", "key"]):
            here = pool.find(digests(table))
            numbers[here[here >= 0]] = part.sequence
    has_result = numbers >= 0
    table = pa.table({"id": pool.ids.filter(pa.array(has_result)), "part": numbers[has_result]})
    with replacing(path) as sink:
        pq.write_table(table, sink, compression="zstd")


def find_result(path: Path, folder: Path, id: str, digest: bytes) -> RowResult | None:
    """Return a row's result from the one part that the index names; None where it is damaged or no longer there.

    Parts may have been merged since: a merged part has the number of its first source, so the row is in the part of the
    highest number up to its own.

    Args:
        path: index.parquet; None comes back where there is none.
        digest: its `row_digest`.

    Raises:
        StoreError: a file cannot be read.
    """
    if not (path.exists() and folder.is_dir()):
        return None
    with reading(path, fix="delete it: answers are then looked for in every part"):
        index = pq.read_table(path)
    at = pc.index(index["id"], id).as_py()
    if at < 0:
        return None
    number = index["part"][at].as_py()
    named = [part for part in named_parts(folder, Inventory()) if part[1] <= number]
    for part_path, sequence, checksum in named:
        if sequence == named[-1][1]:
            with reading(part_path, fix="run the same command again"):
                is_whole = digest_file(part_path) == checksum
            part = Part(part_path, sequence, rows=0, size_bytes=0)
            if is_whole and (result := next(results_of([part], {digest}), None)):
                return result
    return None
