"""A file of answers that somebody else generated, found by what rows of the pool are called or ask."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from typing import Any

from adg_plugin.config.schema import IN_MEMORY, ADGConfig, DatasetSpec
from adg_plugin.data.cells import Reason, UnusableRowError, decoded, is_missing
from adg_plugin.data.layouts import find_layout
from adg_plugin.data.rows import Rejection, Row, canonical_json, own_id, parse_row
from adg_plugin.data.sources import Record, iter_records, pool_fingerprint
from adg_plugin.errors import DataError

MIN_ANSWERS = 3

_TABLE = """
CREATE TABLE given (
    number INTEGER PRIMARY KEY, id BLOB, shown TEXT, place TEXT, asks BLOB, instruction BLOB, content BLOB,
    answers TEXT, reason TEXT, detail TEXT, is_used INTEGER DEFAULT 0
);
CREATE INDEX by_id ON given (id);
CREATE INDEX by_asks ON given (asks);
CREATE INDEX by_instruction ON given (instruction);
"""


def texts_of(record: Record) -> list[str]:
    """Return the answers of a record; a DataError where it has no list of texts."""
    answers = record.data.get("generated_answers")
    found = decoded(answers)
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
        seen = "missing" if answers is None else repr(answers)[:60]
        raise DataError(
            f"{record.where}: generated_answers is {seen}: give a list of {MIN_ANSWERS} texts or more per row"
        )
    return list(found)


def counted(number: int, noun: str) -> str:
    """Return `1 row`, `2 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class AnswerFile:
    """The rows of a file of answers, found by what rows of the pool are called or ask.

    The rows lie in a database on the disk that only this process sees, and which goes with it.
    """

    def __init__(self, config: ADGConfig) -> None:
        """Read the rows of the config's `answers`.

        Columns may be called as in the pool's own entries of `datasets`, or as they are by default.

        Raises:
            DataError: no such file, or not one of answers; an id with two different rows.
        """
        assert config.answers is not None
        self._path, specs = config.answers, config.datasets or (IN_MEMORY,)
        self._id_columns = [spec.field_id for spec in specs]
        forms = [_in_file(self._path, spec) for spec in (*specs, IN_MEMORY)]
        self._rows = sqlite3.connect("", isolation_level=None)
        self._rows.executescript(_TABLE)
        self._total = self._partly_named = 0
        with closing(self._rows.cursor()) as cursor:
            cursor.execute("BEGIN")
            for record in iter_records(forms[-1:]):
                spec = next((spec for spec in forms if find_layout(record.data, spec) is not None), record.spec)
                self._add(cursor, Record(record.data, record.where, spec))
            cursor.execute("COMMIT")

    def close(self) -> None:
        """Delete the database."""
        self._rows.close()

    def _add(self, cursor: sqlite3.Cursor, record: Record) -> None:
        self._total += 1
        texts, row = texts_of(record), parse_row(record)
        own = own_id(record.data.get(record.spec.field_id))
        asks, instruction, reason, detail = None, None, None, None
        if isinstance(row, Rejection):
            reason, detail = row.reason.value, row.detail.encode(errors="backslashreplace").decode()
        else:
            asks, instruction = _asks(row), _instruction(record, row)
        words = asks or _digest({name: value for name, value in record.data.items() if name != "generated_answers"})
        content = _digest([words, instruction, texts])
        id = shown = None
        if own is not None:
            id, shown = _digest(own), own.encode(errors="backslashreplace").decode()
            earlier = cursor.execute("SELECT place, content FROM given WHERE id = ?", (id,)).fetchone()
            if earlier is not None and earlier[1] != content:
                raise DataError(
                    f"{record.where}: id {own!r} asks or answers something else than in {earlier[0]}: keep one of them"
                )
            if earlier is not None:
                return
        cursor.execute(
            "INSERT INTO given (id, shown, place, asks, instruction, content, answers, reason, detail) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (id, shown, record.where, asks, instruction, content, json.dumps(texts), reason, detail),
        )

    def know(self, row_id: str) -> None:
        """Take note that the pool has a row of this id, which cannot be used."""
        self._rows.execute("UPDATE given SET is_used = 1 WHERE id = ?", (_digest(row_id),))

    def texts(self, row: Row) -> list[str]:
        """Return the answers to a row of the pool; an UnusableRowError where there are none, or to something else."""
        columns = "SELECT number, place, asks, instruction, answers, reason, detail FROM given WHERE "
        alone = _digest([row.instruction])
        whole = _digest([row.instruction, row.input]) if row.input else alone
        found = self._rows.execute(columns + "id = ?", (_digest(row.id),)).fetchall()
        if not found:
            # A row without an id is known by what it asks; so is an answer without one.
            has_id = own_id(row.data.get(self._id_columns[row.entry])) is not None
            # Its instruction alone will not do: rows of one instruction may have different inputs.
            for test in ("asks = :asks", "instruction = :whole"):
                of_others = " AND id IS NULL" if has_id else ""
                values = {"asks": _asks(row), "whole": whole}
                found = found or self._rows.execute(columns + test + of_others, values).fetchall()
            for other in found[1:]:
                if other[4] != found[0][4]:
                    places = f"{found[0][1]} and {other[1]}"
                    detail = f"{places} answer it differently, and it has no id: give ids to both files"
                    raise UnusableRowError(Reason.NO_GIVEN, detail)
        if not found:
            raise UnusableRowError(Reason.NO_GIVEN, f"{self._path} has no answers to it")
        self._rows.executemany("UPDATE given SET is_used = 1 WHERE number = ?", [found_row[:1] for found_row in found])
        _, place, asks, instruction, answers, reason, detail = found[0]
        if reason is not None:
            raise UnusableRowError(Reason(reason), f"{place}: {detail}")
        if asks != _asks(row):
            if instruction not in (alone, whole):
                raise UnusableRowError(Reason.OTHER_PROMPT, f"{place} has its id, and asks something else")
            self._partly_named += 1
        texts: list[str] = json.loads(answers)
        return texts

    def notes(self) -> list[str]:
        """Return sentences about what did not meet a row of the pool, or not wholly."""
        notes = []
        unused, first = self._rows.execute("SELECT count(*), min(number) FROM given WHERE is_used = 0").fetchone()
        if unused:
            shown, place = self._rows.execute("SELECT shown, place FROM given WHERE number = ?", (first,)).fetchone()
            which = place if shown is None else f"id {shown!r} ({place})"
            notes.append(f"not in the pool: {counted(unused, 'row')} of {self._total} in {self._path}, such as {which}")
        if self._partly_named:
            rows = counted(self._partly_named, "row")
            more = f"an input, a system prompt or earlier turns that {self._path} does not name"
            notes.append(f"matched by id and instruction: {rows} with {more}")
        return notes


def answers_fingerprint(config: ADGConfig) -> str | None:
    """Return what changes with the config's `answers` and with what counts of them; None where that cannot be known.

    Raises:
        DataError: no such file.
    """
    assert config.answers is not None
    fingerprint = pool_fingerprint([_in_file(config.answers, IN_MEMORY)])
    return None if fingerprint is None else f"{fingerprint} {config.num_samples}"


def _in_file(path: str, names: DatasetSpec) -> DatasetSpec:
    of_source = dict.fromkeys(("ds_type", "name", "revision", "data_files"))
    return names.model_copy(update={"path": path, "split": "train", **of_source})


def _asks(row: Row) -> bytes:
    return _digest({"messages": row.messages, "text": row.text})


def _instruction(record: Record, row: Row) -> bytes | None:
    """Return what stands for the instruction, with the input where it is named; None where more than that is named.

    The authors' files leave the input out.
    """
    data, spec = record.data, record.spec
    if find_layout(data, spec) != "alpaca" or not is_missing(data.get(spec.field_system)):
        return None
    return _digest([row.instruction] if is_missing(data.get(spec.field_input)) else [row.instruction, row.input])


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(canonical_json({"": value}).encode(), digest_size=16).digest()
