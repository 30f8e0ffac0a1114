"""prompts.parquet: every row of the pool, in order, rendered to a prompt or rejected with its reason."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adg_plugin.errors import StoreError
from adg_plugin.store.files import digest_file, read_json, reading, replacing, with_columns, write_json
from adg_plugin.store.records import Answer, Prompt

ROWS_PER_GROUP = 2048
_RESTAGE = "delete it and run the same command again"
BYTES_PER_GROUP = 32 << 20  # rows with long texts come in smaller groups, so memory stays bounded

ANSWERS = pa.list_(
    pa.field(
        "item",
        pa.struct(
            [
                ("token_ids", pa.list_(pa.field("item", pa.int32(), nullable=False))),
                ("text", pa.string()),
                ("finish_reason", pa.string()),
            ]
        ),
        nullable=False,
    )
)

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        ("key", pa.binary(16)),
        ("token_ids", pa.list_(pa.field("item", pa.int32(), nullable=False))),
        ("reference_ids", pa.list_(pa.field("item", pa.int32(), nullable=False))),
        ("given", ANSWERS),
        ("span_start", pa.int32()),
        ("span_end", pa.int32()),
        ("num_tokens", pa.int32()),
        ("instruction", pa.string()),
        ("text", pa.string()),
        ("reference", pa.string()),
        ("data", pa.string()),
        pa.field("where", pa.string(), nullable=False),
        ("dataset", pa.int16()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class StagedRow:
    """A row that will be sampled."""

    prompt: Prompt  # with its 16-byte key
    text: str  # the rendered prompt
    reference: str  # the data set's answer
    data: str  # the original row, a JSON object as text
    where: str  # file and line, for messages
    dataset: int = 0  # which entry of the settings' `datasets` it came of


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that cannot be selected, and why."""

    id: str
    reason: str
    detail: str = ""
    where: str = ""


def row_digest(id: str, key: bytes) -> bytes:
    """Return 16 bytes that stand for (id, key). The last one is never 0: numpy's `S16` would drop it."""
    digest = hashlib.blake2b(key + id.encode(), digest_size=16).digest()
    return digest[:15] + bytes([digest[15] | 1])


def stage(
    path: Path,
    rows: Iterable[StagedRow | Rejection],
    *,
    digest: str,
    notes: Sequence[str] = (),
    given: bool = False,
) -> int:
    """Write the pool to `path`, a row group at a time, and return the number of prompts.

    Args:
        path: replaced when the last row is written, not before.
        rows: consumed as they come; memory does not depend on their number.
        digest: of all that staging depends on, kept next to the file with its checksum; see `read_seal`.
        notes: sentences about the pool, kept likewise; looked at when the last row is written.
        given: the prompts have answers that somebody else generated; else there is no column for them.

    Raises:
        StoreError: the file cannot be written.
    """
    num_prompts = 0
    schema = SCHEMA if given else pa.schema([field for field in SCHEMA if field.name != "given"])
    with replacing(path) as sink:
        writer = pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            use_dictionary=["where", "reason", "detail"],
            write_statistics=False,
            write_page_checksum=True,
        )
        with writer:
            for group in _groups(rows):
                num_prompts += sum(isinstance(row, StagedRow) for row in group)
                writer.write_table(pa.Table.from_pylist([_record(row) for row in group], schema))
    write_json(_seal(path), {"digest": digest, "blake2b": sink.digest, "notes": list(notes)})
    return num_prompts


def _groups(rows: Iterable[StagedRow | Rejection]) -> Iterator[list[StagedRow | Rejection]]:
    group: list[StagedRow | Rejection] = []
    size_bytes = 0
    for row in rows:
        group.append(row)
        if isinstance(row, StagedRow):
            size_bytes += len(row.text) + len(row.reference) + len(row.data) + 4 * len(row.prompt)
            size_bytes += sum(len(answer.text) + 4 * len(answer.token_ids) for answer in row.prompt.given or ())
        if len(group) >= ROWS_PER_GROUP or size_bytes >= BYTES_PER_GROUP:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _record(row: StagedRow | Rejection) -> dict[str, Any]:
    if isinstance(row, Rejection):
        record = {"id": row.id, "where": row.where, "reason": row.reason, "detail": row.detail}
        # Half of a surrogate pair has no UTF-8, and may be the very thing the row is rejected for.
        return {name: text.encode(errors="backslashreplace").decode() for name, text in record.items()}
    prompt = row.prompt
    return {
        "id": prompt.id,
        "key": prompt.key,
        "token_ids": np.asarray(prompt.token_ids, np.int32),
        "reference_ids": prompt.reference_ids,
        "given": None if prompt.given is None else answer_records(prompt.given),
        "span_start": prompt.span[0],
        "span_end": prompt.span[1],
        "num_tokens": len(prompt),
        "instruction": prompt.instruction,
        "text": row.text,
        "reference": row.reference,
        "data": row.data,
        "where": row.where,
        "dataset": row.dataset,
    }


def answer_records(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """Return answers as a column of type `ANSWERS` takes them."""
    return [
        {"token_ids": np.asarray(a.token_ids, np.int32), "text": a.text, "finish_reason": a.finish_reason}
        for a in answers
    ]


def answers_of(records: Iterable[dict[str, Any]]) -> tuple[Answer, ...]:
    """Return the answers that a column of type `ANSWERS` gives."""
    return tuple(Answer(np.array(a["token_ids"], np.int32), a["text"], a["finish_reason"]) for a in records)


@dataclass(frozen=True, slots=True)
class Seal:
    """What stands next to a staged pool."""

    digest: str  # as `stage` was given it
    is_whole: bool  # the pool's bytes are those that were written


def read_notes(path: Path) -> list[str]:
    """Return the sentences written with the staged pool; a StoreError where they cannot be read."""
    seal = read_json(_seal(path), fix=_RESTAGE)
    return [] if seal is None else seal.get("notes", [])


def read_seal(path: Path) -> Seal | None:
    """Return the staged pool's seal, None without a pool, after reading every byte; a StoreError if unreadable."""
    seal = read_json(_seal(path), fix=_RESTAGE)
    if seal is None or not path.exists():
        return None
    with reading(path, fix=_RESTAGE):
        return Seal(seal["digest"], digest_file(path) == seal["blake2b"])


def _seal(path: Path) -> Path:
    return path.with_suffix(".json")


def groups(path: Path, columns: list[str], *, rejected: bool = False) -> Iterator[pa.Table]:
    """Yield the chosen columns of the prompts, or of the rejected rows, one row group at a time, in the pool's order.

    Raises:
        StoreError: no pool is staged, or its file is damaged.
    """
    if not path.exists():
        raise StoreError(f"{path} does not exist: no pool has been staged in this run folder yet")
    mend = reading(path, fix="delete it and run the same command again (the answers are kept)")
    with mend, pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        for index in range(file.num_row_groups):
            wanted = [*columns, "reason"]
            table = with_columns(file.read_row_group(index, columns=wanted, use_threads=False), wanted, SCHEMA)
            is_prompt = pc.is_null(table["reason"])
            yield table.filter(pc.invert(is_prompt) if rejected else is_prompt).combine_chunks()


def windows(path: Path, is_wanted: Callable[[bytes], bool]) -> Iterator[list[Prompt]]:
    """Yield the prompts whose `row_digest` is wanted, those of one row group together."""
    columns = ["id", "key", "token_ids", "reference_ids", "span_start", "span_end", "instruction"]
    has_given = path.exists() and "given" in pq.read_schema(path).names
    for table in groups(path, [*columns, "given"] if has_given else columns):
        ids, keys = table["id"].to_pylist(), table["key"].to_pylist()
        wanted = [row for row in range(len(ids)) if is_wanted(row_digest(ids[row], keys[row]))]
        if not wanted:
            continue
        tokens = table["token_ids"].combine_chunks()
        offsets = tokens.offsets.to_numpy()
        values = tokens.values.to_numpy()
        starts, ends = table["span_start"].to_pylist(), table["span_end"].to_pylist()
        instructions = table["instruction"].to_pylist()
        own = [None if ids is None else np.array(ids, np.int32) for ids in table["reference_ids"].to_pylist()]
        yield [
            # A copy: a view would keep the whole group's tokens alive for as long as one prompt is in use.
            Prompt(
                ids[row],
                values[offsets[row] : offsets[row + 1]].copy(),
                (starts[row], ends[row]),
                keys[row],
                instructions[row],
                own[row],
                _given(table["given"][row].as_py()) if has_given else None,
            )
            for row in wanted
        ]


def staged_rows(path: Path, ids: set[str]) -> Iterator[StagedRow]:
    """Yield the staged rows with these ids, in the pool's order."""
    wanted = pa.array(sorted(ids), pa.string())
    for table in groups(path, SCHEMA.names[:-2]):
        for row in table.filter(pc.is_in(table["id"], value_set=wanted)).to_pylist():
            tokens = np.array(row["token_ids"], np.int32)
            own = None if row["reference_ids"] is None else np.array(row["reference_ids"], np.int32)
            span = row["span_start"], row["span_end"]
            prompt = Prompt(row["id"], tokens, span, row["key"], row["instruction"], own, _given(row["given"]))
            yield StagedRow(prompt, row["text"], row["reference"], row["data"], row["where"], row["dataset"])


def _given(records: list[dict[str, Any]] | None) -> tuple[Answer, ...] | None:
    return None if records is None else answers_of(records)


def rejections(path: Path) -> Iterator[Rejection]:
    """Yield the rows that were rejected while staging, in the pool's order."""
    for table in groups(path, ["id", "where", "detail"], rejected=True):
        for row in table.to_pylist():
            yield Rejection(row["id"], row["reason"], row["detail"], row["where"])
