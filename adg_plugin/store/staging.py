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
from adg_plugin.store.files import reading, replacing, with_columns, write_json
from adg_plugin.store.records import Answer, Prompt

ROWS_PER_GROUP = 2048
BYTES_PER_GROUP = 32 << 20  # rows with long texts come in smaller groups, so memory stays bounded


def list_of(item: pa.DataType) -> pa.ListType:
    """Return the type of a list of free length without nulls in it."""
    return pa.list_(pa.field("item", item, nullable=False))


TOKEN_IDS = list_of(pa.int32())
ANSWERS = list_of(pa.struct([("token_ids", TOKEN_IDS), ("text", pa.string()), ("finish_reason", pa.string())]))

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        ("key", pa.binary(16)),
        ("token_ids", TOKEN_IDS),
        ("reference_ids", TOKEN_IDS),
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
_OF_PROMPT = ["id", "key", "token_ids", "reference_ids", "given", "span_start", "span_end", "instruction"]
PROMPT = pa.schema([SCHEMA.field(name) for name in _OF_PROMPT])  # what a `Prompt` is made of
ROW = ["text", "reference", "data", "where", "dataset"]  # what a `StagedRow` has beside its prompt


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


def digests(table: pa.Table) -> list[bytes]:
    """Return the `row_digest` of each row of a table with columns id and key."""
    return [row_digest(id, key) for id, key in zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True)]


def stage(
    path: Path, rows: Iterable[StagedRow | Rejection], *, digest: str, notes: Sequence[str] = (), given: bool = False
) -> int:
    """Write the pool to `path`, a row group at a time, and return the number of prompts.

    The rest is as in `RunFolder.stage_prompts`; digest and notes are kept next to the file, with its checksum.

    Args:
        path: replaced when the last row is written, not before.
        rows: consumed as they come; memory does not depend on their number.
        given: else there is no column for answers that somebody else generated.
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
    write_json(path.with_suffix(".json"), {"digest": digest, "blake2b": sink.digest, "notes": list(notes)})
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
    record = prompt_record(row.prompt) | {"num_tokens": len(row.prompt)}
    return record | {name: getattr(row, name) for name in ROW}


def prompt_record(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as a row of the schema `PROMPT`."""
    return {
        "id": prompt.id,
        "key": prompt.key,
        "token_ids": np.asarray(prompt.token_ids, np.int32),
        "reference_ids": prompt.reference_ids,
        "given": None if prompt.given is None else answer_records(prompt.given),
        "span_start": prompt.span[0],
        "span_end": prompt.span[1],
        "instruction": prompt.instruction,
    }


def prompts_of(table: pa.Table) -> Iterator[Prompt]:
    """Yield the prompts of a table with the columns of `PROMPT`."""
    for token_ids, row in zip(table["token_ids"], table.drop_columns("token_ids").to_pylist(), strict=True):
        own, given = row["reference_ids"], row["given"]
        yield Prompt(
            row["id"],
            # A copy: a view would keep the whole group's tokens alive for as long as one prompt is in use.
            token_ids.values.to_numpy().copy(),
            (row["span_start"], row["span_end"]),
            row["key"],
            row["instruction"],
            None if own is None else np.array(own, np.int32),
            None if given is None else answers_of(given),
        )


def answer_records(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """Return answers as a column of type `ANSWERS` takes them."""
    return [
        {"token_ids": np.asarray(a.token_ids, np.int32), "text": a.text, "finish_reason": a.finish_reason}
        for a in answers
    ]


def answers_of(records: Iterable[dict[str, Any]]) -> tuple[Answer, ...]:
    """Return the answers that a column of type `ANSWERS` gives."""
    return tuple(Answer(np.array(a["token_ids"], np.int32), a["text"], a["finish_reason"]) for a in records)


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
    for table in groups(path, PROMPT.names):
        if rows := [row for row, digest in enumerate(digests(table)) if is_wanted(digest)]:
            yield list(prompts_of(table.take(rows)))
