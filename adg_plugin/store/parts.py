"""answers/part-*.parquet: what the engine found, in files whose names carry their own checksum."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from adg_plugin.errors import StoreError
from adg_plugin.store.files import (
    digest_bytes,
    digest_file,
    make_folder,
    reading,
    remove_leftovers,
    replacing,
    sync_folder,
    with_columns,
    writing,
)
from adg_plugin.store.records import RowResult
from adg_plugin.store.staging import ANSWERS, answer_records, answers_of, digests, list_of

DAMAGED = "damaged"
_NAME = re.compile(r"part-(\d{6,})-([0-9a-f]{32})\.parquet")
_VANISHED = "another process may be at work on it: try again"
MERGED_ROWS = 2048
MERGED_BYTES = 32 << 20

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("key", pa.binary(16), nullable=False),
        ("answers", ANSWERS),
        ("gram", list_of(pa.float32())),  # K * K, row by row
        # Lists of free length, not of width H: parts of several backbones then have one schema and can be merged.
        ("prompt_vector", list_of(pa.float16())),
        ("vectors", list_of(pa.float16())),  # K * H
        ("num_tokens", pa.int32()),  # sampled, all answers together
        ("agreement", pa.float32()),  # of the reference response with these, where it was asked for
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Part:
    """A whole, verified file of results."""

    path: Path
    sequence: int
    rows: int
    size_bytes: int


@dataclass(slots=True)
class Inventory:
    """What a folder of parts holds."""

    parts: list[Part] = field(default_factory=list)  # by sequence; of two results for one row the first counts
    completed: set[bytes] = field(default_factory=set)  # `row_digest` of every row that has a result
    damage: list[str] = field(default_factory=list)  # sentences for the user

    @property
    def next_sequence(self) -> int:
        """Number of the next part to write."""
        return self.parts[-1].sequence + 1 if self.parts else 0


def to_table(results: Sequence[RowResult]) -> pa.Table:
    """Return the results in the parts' schema."""
    return pa.Table.from_pylist([to_record(result) for result in results], SCHEMA)


def to_record(result: RowResult) -> dict[str, Any]:
    """Return one result as a row of the parts' schema."""
    return {
        "id": result.id,
        "key": result.key,
        "answers": answer_records(result.answers),
        "gram": None if result.gram is None else result.gram.ravel(),
        "prompt_vector": result.prompt_vector,
        "vectors": None if result.vectors is None else result.vectors.ravel(),
        "num_tokens": result.num_tokens,
        "agreement": result.agreement,
        "reason": result.reason,
    }


def to_results(table: pa.Table) -> Iterator[RowResult]:
    """Yield the results in a part's table."""
    for row in table.to_pylist():
        answers = answers_of(row["answers"])
        gram = vectors = prompt_vector = None
        if row["gram"] is not None:
            num_answers = math.isqrt(len(row["gram"]))
            gram = np.array(row["gram"], np.float32).reshape(num_answers, num_answers)
            if row["vectors"] is not None:
                vectors = np.array(row["vectors"], np.float16).reshape(num_answers, -1)
        if row["prompt_vector"] is not None:
            prompt_vector = np.array(row["prompt_vector"], np.float16)
        yield RowResult(row["id"], row["key"], answers, gram, prompt_vector, row["reason"], vectors, row["agreement"])


def write_part(folder: Path, sequence: int, table: pa.Table) -> Part:
    """Write one part, whole or not at all, and return it; a StoreError where it cannot be written."""
    stream = pa.BufferOutputStream()
    # Dictionaries and statistics cost time and gain nothing on vectors and texts that never repeat.
    pq.write_table(table, stream, compression="zstd", use_dictionary=["reason"], write_statistics=False)
    data = stream.getvalue()
    path = folder / f"part-{sequence:06d}-{digest_bytes(data)}.parquet"
    with replacing(path) as sink:
        sink.write(data)
    return Part(path, sequence, table.num_rows, data.size)


def row_groups(part: Part, columns: list[str], schema: pa.Schema = SCHEMA) -> Iterator[pa.Table]:
    """Yield some columns of a part, a row group at a time."""
    with reading(part.path, fix=_VANISHED), pq.ParquetFile(part.path, pre_buffer=False) as file:
        for index in range(file.num_row_groups):
            table = file.read_row_group(index, columns=columns, use_threads=False)
            yield with_columns(table, columns, schema).combine_chunks()


def take_stock(folder: Path, *, repair: bool) -> Inventory:
    """Return the parts whose bytes agree with the checksum in their names, and which rows they hold.

    Args:
        folder: the folder of parts; it may be missing.
        repair: move damaged parts to `damaged/`, delete leftovers of a killed process and parts that repeat others.
            Only for the holder of the lock.

    Raises:
        StoreError: the folder cannot be read or mended.
    """
    stock = Inventory()
    if not folder.is_dir():
        return stock
    if repair:
        remove_leftovers(folder)
    for path, sequence, digest in named_parts(folder, stock):
        with reading(path, fix=_VANISHED):
            is_whole = digest_file(path) == digest
        if not is_whole:
            done = "left out"
            if repair:
                aside = folder / DAMAGED
                done = f"moved to {aside}"
                make_folder(aside)
                with writing(aside):
                    path.replace(aside / path.name)
            # The number of rows is left out: it would mean to parse what is known to be broken.
            stock.damage.append(
                f"{path} is damaged (its bytes do not match the checksum in its name): {done}, its rows are to be "
                "sampled or measured again"
            )
            continue
        with reading(path, fix="its checksum is right but it is no part of a run: remove it"):
            table = pq.read_table(path, columns=["id", "key"], use_threads=False)
        found = set(digests(table))
        if repair and found <= stock.completed:
            # A merge was cut off after its result was written and before its sources were deleted.
            with writing(path):
                path.unlink()
            continue
        stock.completed |= found
        stock.parts.append(Part(path, sequence, table.num_rows, path.stat().st_size))
    return stock


def named_parts(folder: Path, stock: Inventory) -> list[tuple[Path, int, str]]:
    """Return path, number and checksum of each part, unread, by number; what is none goes to the stock's damage."""
    named = []
    for path in folder.iterdir():
        if match := _NAME.fullmatch(path.name):
            named.append((path, int(match[1]), match[2]))
        elif path.suffix == ".parquet":
            stock.damage.append(f"{path} is not read: its name has no checksum, so this run did not write it")
    return sorted(named, key=lambda entry: (entry[1], entry[2]))


def impossible_answers(table: pa.Table, vocabulary: int, eos_ids: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return of which rows (N,) an answer has a token beyond the vocabulary, or goes on after an end-of-answer token.

    Args:
        table: with the column `answers`, in one chunk.
    """
    answers = table["answers"].combine_chunks()
    tokens = answers.values.field("token_ids")
    ids = tokens.values.to_numpy()
    bad = np.cumsum(np.r_[0, (ids < 0) | (ids >= vocabulary) | np.isin(ids, eos_ids)])
    ends = bad[tokens.offsets.to_numpy()[answers.offsets.to_numpy()]]  # (N + 1,), a row's tokens lie side by side
    found: npt.NDArray[np.bool_] = np.diff(ends) > 0
    return found


def merge_small(stock: Inventory, folder: Path, *, small_rows: int, schema: pa.Schema = SCHEMA) -> int:
    """Merge neighbouring small parts, and return how many fewer there are now.

    A crash at any moment loses nothing: the sources go only when the merged part is on the disk. It duplicates
    nothing either: the merged part takes its first source's number, so the first result of a row stays the first.

    Args:
        stock: what `folder` holds; its list of parts is brought up to date.
        small_rows: parts with fewer rows are merged.

    Raises:
        StoreError: a part cannot be written, or was altered.
    """
    before = len(stock.parts)
    merged: list[Part] = []
    for run in _runs(stock.parts, small_rows):
        merged.extend([_merge(run, folder, schema)] if len(run) > 1 else run)
    stock.parts = merged
    return before - len(merged)


def _runs(parts: Sequence[Part], small_rows: int) -> Iterable[list[Part]]:
    run: list[Part] = []
    for part in parts:
        is_small = part.rows < small_rows
        rows = sum(p.rows for p in run) + part.rows
        size_bytes = sum(p.size_bytes for p in run) + part.size_bytes
        if run and (not is_small or run[-1].rows >= small_rows or rows > MERGED_ROWS or size_bytes > MERGED_BYTES):
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _merge(run: list[Part], folder: Path, schema: pa.Schema) -> Part:
    tables = []
    for part in run:
        with reading(part.path, fix=_VANISHED):
            data = part.path.read_bytes()
        if digest_bytes(data) not in part.path.name:
            raise StoreError(f"{part.path} was altered while in use: run the same command again, it will be set aside")
        tables.append(with_columns(pq.read_table(pa.BufferReader(data), use_threads=False), schema.names, schema))
    table = pa.concat_tables(tables)
    first_at: dict[bytes, int] = {}
    for row, digest in enumerate(digests(table)):
        first_at.setdefault(digest, row)
    part = write_part(folder, run[0].sequence, table.take(pa.array(first_at.values(), pa.int64())))
    for source in run:
        if source.path != part.path:  # the same bytes, where the others only repeated the first
            with writing(source.path):
                source.path.unlink()
    with writing(folder):
        sync_folder(folder)
    return part
