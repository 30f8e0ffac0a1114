"""Records -> rows: one form for every layout, an id for every row, each row once."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import itertools
import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.cells import Reason, UnusableRowError, is_missing
from adg_plugin.data.layouts import (
    Layout,
    find_layout,
    read_content,
    read_template_kwargs,
    read_tools,
    unknown_layout,
)
from adg_plugin.data.sources import Record
from adg_plugin.data.turns import Message
from adg_plugin.errors import DataError

_ROWS_BEFORE_A_LAYOUT = 100


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the pool. It asks with `messages`, or with raw `text`; exactly one of them is set.

    `instruction` is the last user turn (alpaca: the instruction alone, `input` apart), `answer` the assistant turn that
    the pool holds (None where it has none), `data` the mapping as it was found. Of `messages`, those from
    `completion_start` on belong to the row's completion, as the answer does. Prompts and what is trained are made of
    these fields alone.
    """

    id: str
    messages: tuple[Message, ...] | None
    text: str | None
    instruction: str
    input: str
    answer: Message | None
    completion_start: int
    tools: tuple[dict[str, Any], ...] | None
    chat_template_kwargs: dict[str, Any]
    data: dict[str, Any]
    where: str
    entry: int  # which entry of the settings' `datasets` it came of

    @property
    def question(self) -> str:
        """The row's own words: the instruction, and its input where it has one."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    @property
    def reference(self) -> str:
        """The answer's text, "" where it has none: no answer, or one that only calls tools."""
        return "" if self.answer is None else str(self.answer.get("content", ""))


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that is not scored: `reason` for counting, `detail` for reading."""

    id: str
    reason: Reason
    detail: str
    where: str
    data: dict[str, Any]

    @classmethod
    def of(cls, row: Row | Rejection, reason: Reason, detail: str) -> Rejection:
        """Return the rejection of a row that was read."""
        return cls(row.id, reason, detail, row.where, row.data)


def canonical_json(data: Mapping[str, Any]) -> str:
    """Return the same ASCII text for equal mappings, whatever their key order; a TypeError if JSON cannot hold it."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), default=_plain)


def row_json(data: Mapping[str, Any]) -> str:
    """Return the row as JSON text, keys in their own order; a TypeError for a value that JSON cannot hold.

    NaN and infinity, for which JSON has no word, become null.
    """
    try:
        return json.dumps(data, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(data), ensure_ascii=False, default=_plain)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def parse_row(record: Record, layout: Layout | None = None) -> Row | Rejection:
    """Return a record's row, or why it cannot be used; a DataError where neither `layout` nor the columns tell how."""
    return _parsed(record, _identity(record)[0], layout)


def has_answer(data: Mapping[str, Any], spec: DatasetSpec) -> bool:
    """Return whether a row of the pool has an answer to train on; one that only calls tools is one."""
    layout = find_layout(data, spec)
    row = None if layout is None else parse_row(Record(dict(data), "", spec), layout)
    return isinstance(row, Row) and row.answer is not None


def unique_rows(records: Iterable[Record]) -> Iterator[Row | Rejection]:
    """Yield every record once as a row or a rejection, in order; a row seen before comes as a rejection.

    Rows with ids of their own are duplicates when id and content are equal; rows without, when the content is. Holds
    about 130 bytes per row.

    Raises:
        DataError: two rows with one id and different content; a data set whose first 100 rows fit no layout.
    """
    seen = _Seen()
    for record, layout in _with_layout(records):
        row_id, content = _identity(record)
        earlier = seen.place(row_id, content, record.where)
        if earlier is None:
            yield _parsed(record, row_id, layout)
        elif earlier[0] == content:
            yield Rejection(row_id, Reason.DUPLICATE, f"same as {earlier[1]}", record.where, record.data)
        else:
            raise DataError(
                f"{record.where}: id {row_id!r} is taken by a different row, {earlier[1]}: "
                "make ids unique, or set field_id: '' to use content hashes instead"
            )


def _with_layout(records: Iterable[Record]) -> Iterator[tuple[Record, Layout]]:
    """Yield each record with its layout; a record without known columns takes that of the rows around it."""
    for _, group in itertools.groupby(records, key=lambda record: id(record.spec)):
        layout: Layout | None = None
        waiting: list[Record] = []
        for record in group:
            layout = find_layout(record.data, record.spec) or layout
            waiting.append(record)
            if layout is not None:
                yield from ((held, layout) for held in waiting)
                waiting = []
            elif len(waiting) == _ROWS_BEFORE_A_LAYOUT:
                break
        if waiting:
            raise DataError(f"{waiting[0].where}: {unknown_layout(waiting[0].data, waiting[0].spec)}")


def _parsed(record: Record, row_id: str, layout: Layout | None) -> Row | Rejection:
    data, spec = record.data, record.spec
    layout = layout or find_layout(data, spec)
    if layout is None:
        raise DataError(f"{record.where}: {unknown_layout(data, spec)}")
    try:
        own = data.get(spec.field_id)
        if not is_missing(own) and own_id(own) is None and own != "":
            raise UnusableRowError(Reason.BAD_TYPE, f"{spec.field_id} is {own!r}, expected text or a whole number")
        _check_text(row_id, data)
        content = read_content(data, spec, layout)
        tools, kwargs = read_tools(data, spec), read_template_kwargs(data)
    except UnusableRowError as err:
        return Rejection(row_id, err.reason, err.detail, record.where, data)
    return Row(row_id, *content, tools, kwargs, data, record.where, record.entry)


def _check_text(row_id: str, data: Mapping[str, Any]) -> None:
    try:
        f"{row_id}{row_json(data)}".encode()
    except UnicodeEncodeError as err:
        around = err.object[max(0, err.start - 20) : err.end]
        detail = f"{around!r} ends in half a character, which no file can hold: repair the text"
        raise UnusableRowError(Reason.BAD_TEXT, detail) from None


def _identity(record: Record) -> tuple[str, int]:
    """Return a row's id, its own or `h` and a hash, and the 64-bit hash of its content."""
    id_column = record.spec.field_id
    own = own_id(record.data.get(id_column))
    data = {name: value for name, value in record.data.items() if name != id_column}
    try:
        content = _hash64(canonical_json(data))
    except TypeError as err:
        raise DataError(f"{record.where}: column {_unwritable(data)!r}: {err}: drop that column") from None
    return own if own is not None else f"h{content:016x}", content


def _unwritable(data: Mapping[str, Any]) -> str:
    """Return the first column that JSON cannot hold."""
    for name, value in data.items():
        try:
            canonical_json({name: value})
        except TypeError:
            return name
    raise AssertionError("JSON can hold each column, and not all of them")


def own_id(value: Any) -> str | None:
    """Return what the value of an id column calls a row, or None where it is no name."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers with gaps, after pandas
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal | uuid.UUID):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")


class _Seen:
    """Remembers id, content and place of each row in two integers."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._sources: dict[str, int] = {}

    def place(self, row_id: str, content: int, where: str) -> tuple[int, str] | None:
        """Return content hash and place of the earlier row with this id, or remember this one."""
        source, _, number = where.rpartition(":")
        index = self._sources.setdefault(source, len(self._sources))
        packed = content << 64 | index << 40 | int(number)
        earlier = self._rows.setdefault(_hash64(row_id), packed)
        if earlier is packed:
            return None
        names = list(self._sources)
        return earlier >> 64, f"{names[earlier >> 40 & 0xFFFFFF]}:{earlier & 0xFFFFFFFFFF}"
