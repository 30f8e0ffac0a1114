"""Rows out of a JSON document of any size, with a chunk of its text and a row in memory."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from adg_plugin.errors import DataError

NumberedRow = tuple[int, dict[str, Any]]

CHUNK = 1 << 20  # bytes or characters read at once
LONGEST_VALUE = 256 << 20  # bytes or characters of a row; Python needs several times as much for it


def excerpt(text: str, position: int) -> str:
    """Return what stands around a position, quoted, for an error text."""
    if not text[position:].strip():
        return "the end of the " + ("line" if position else "file")
    start = max(0, position - 30)
    return repr(text[start : position + 40].strip())


def read_document(path: Path, file: BinaryIO) -> Iterator[NumberedRow]:
    """Yield the rows of a JSON list, or of the only one in an object, from 1; a DataError names line and cause."""
    document = _Document(path, io.TextIOWrapper(file, encoding="utf-8-sig"))
    opening = document.peek()
    if opening == "[":
        document.take("[")
        yield from _elements(document)
    elif opening == "{":
        yield from _object(document)
    elif opening:
        raise document.error("neither a list nor an object")
    if document.peek():
        raise document.error("more text after the end of the rows")


class _Document:
    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self._file = file
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._position = 0
        self._lines_dropped = 0
        self._ended = False

    def _more(self) -> None:
        if len(self._buffer) - self._position > LONGEST_VALUE:
            raise self.error(f"a row of more than {LONGEST_VALUE >> 20} MiB")
        self._lines_dropped += self._buffer.count("\n", 0, self._position)
        chunk = self._file.read(max(CHUNK, len(self._buffer) - self._position))  # doubling: a huge value stays linear
        self._ended = not chunk
        self._buffer = self._buffer[self._position :] + chunk
        self._position = 0

    def peek(self) -> str:
        """Return the next character that is not white space, or "" at the end."""
        while True:
            while self._position < len(self._buffer) and self._buffer[self._position] in " \t\r\n":
                self._position += 1
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if self._ended:
                return ""
            self._more()

    def take(self, character: str) -> None:
        if self.peek() != character:
            raise self.error(f"expected {character!r}")
        self._position += 1

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as err:
                # Malformed text is reported at once; only what the end of the buffer may have cut is read on.
                cut = err.msg.startswith("Unterminated string") or err.pos > len(self._buffer) - 16
                if self._ended or not cut:
                    raise self.error(err.msg, err.pos) from None
            except (ValueError, RecursionError) as err:
                raise self.error(str(err)) from None
            else:
                if self._ended or end < len(self._buffer) - 16:
                    self._position = end
                    return value
            self._more()

    def error(self, problem: str, position: int | None = None) -> DataError:
        position = self._position if position is None else position
        line = self._lines_dropped + self._buffer.count("\n", 0, position) + 1
        return DataError(
            f"{self.path}:{line}: not JSON ({problem}): saw {excerpt(self._buffer, position)}; "
            "a .json file has one list of objects, or an object that holds one"
        )


def _elements(document: _Document) -> Iterator[NumberedRow]:
    number = 0
    if document.peek() != "]":
        while True:
            number += 1
            row = document.value()
            if not isinstance(row, dict):
                raise DataError(
                    f"{document.path}: row {number} is {excerpt(json.dumps(row), 0)}, expected a JSON object"
                )
            yield number, row
            if document.peek() != ",":
                break
            document.take(",")
    document.take("]")


def _object(document: _Document) -> Iterator[NumberedRow]:
    document.take("{")
    keys: list[str] = []
    rows_key: str | None = None
    while document.peek() != "}":
        key = document.value()
        keys.append(key)
        document.take(":")
        if document.peek() != "[":
            document.value()
        else:
            document.take("[")
            if document.peek() != "{":
                _skip_elements(document)
            elif rows_key is None:
                rows_key = key
                yield from _elements(document)
            else:
                raise DataError(
                    f"{document.path}: both {rows_key!r} and {key!r} hold lists of rows: put one list into a file"
                )
        if document.peek() != "}":
            document.take(",")
    document.take("}")
    if rows_key is None:
        raise DataError(
            f"{document.path}: an object with {', '.join(keys) or 'nothing'} and no list of rows: "
            "a .json file has one list of objects, or an object that holds one"
        )


def _skip_elements(document: _Document) -> None:
    while document.peek() != "]":
        document.value()
        if document.peek() != "]":
            document.take(",")
    document.take("]")
