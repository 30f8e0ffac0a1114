"""Readers of local files. Each holds a chunk of the file and a row in memory, never the whole pool."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from adg_plugin.data.json_stream import CHUNK, LONGEST_VALUE, NumberedRow, excerpt, read_document
from adg_plugin.errors import DataError

Format = Literal["lines", "json", "csv", "tsv", "parquet", "arrow"]

ACCEPTED_FILES = (
    "JSON lines (.jsonl, .ndjson), JSON (.json), CSV (.csv, .tsv), Parquet (.parquet), Arrow (.arrow); "
    "the text formats also compressed (.gz, .bz2, .zst)"
)
_FORMATS: dict[str, Format] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_BATCH_ROWS = 256
_LONGEST_FIRST_LINE = 4 << 20  # bytes; a longer one is taken for a whole document


def file_format(path: Path, ds_type: str | None = None) -> tuple[Format, str | None] | None:
    """Return format and compression (None: none) by the name and `ds_type` (json, csv, parquet, arrow), else None."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = _COMPRESSIONS.get(suffixes.pop()) if suffixes and suffixes[-1] in _COMPRESSIONS else None
    by_name = _FORMATS.get(suffixes[-1]) if suffixes else None
    if ds_type is None or (ds_type, by_name) in {("json", "lines"), ("csv", "tsv")}:
        found = by_name
    else:
        found = _FORMATS["." + ds_type]
    if found is None or (compression and found in ("parquet", "arrow")):
        return None
    return found, compression


def known_format(path: str | Path, ds_type: str | None) -> tuple[Format, str | None]:
    """Return format and compression as `file_format` does; a DataError where they are not known."""
    known = file_format(Path(path), ds_type)
    if known is None:
        raise DataError(
            f"{path}: unknown file format: use {ACCEPTED_FILES}; or set ds_type to json, csv, parquet or arrow"
        )
    return known


def read_file(path: Path, ds_type: str | None = None, columns: Collection[str] = ()) -> Iterator[NumberedRow]:
    """Yield each row of a file with its number: the line in text formats of lines, else the row, from 1.

    Args:
        path: the file.
        ds_type: json, csv, parquet or arrow, where the name does not tell.
        columns: a JSON document that is an object with one of them is a row itself, whatever lists it holds.

    Raises:
        DataError: unknown format, unreadable, or not what its name says; names the file, the line and what was seen.
    """
    form, compression = known_format(path, ds_type)
    try:
        if form in ("parquet", "arrow"):
            yield from _table_rows(path, form)
        else:
            with _open(path, compression) as file:
                if form == "json" and (row := _only_row(path, compression, columns)) is not None:
                    yield 1, row
                elif form == "lines" or (form == "json" and _holds_json_lines(path, compression)):
                    yield from _lines(path, file)
                elif form == "json":
                    yield from read_document(path, file)
                else:
                    yield from _csv(path, file, "\t" if form == "tsv" else ",")
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err}") from None
    except UnicodeDecodeError as err:
        raise DataError(
            f"{path}: not UTF-8 ({err.reason}, byte {err.object[err.start]:#x}): save it as UTF-8"
        ) from None


def _open(path: Path, compression: str | None) -> BinaryIO:
    if compression is None:
        return path.open("rb")
    import pyarrow as pa  # brings gzip, bz2 and zstd, so that no further package is needed

    return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression=compression), CHUNK))


def _lines(path: Path, file: BinaryIO) -> Iterator[NumberedRow]:
    for number, raw in enumerate(iter(lambda: file.readline(LONGEST_VALUE + 1), b""), 1):
        if raw.isspace():
            continue
        if len(raw) > LONGEST_VALUE:
            raise DataError(
                f"{path}:{number}: a line of more than {LONGEST_VALUE >> 20} MiB: a .jsonl file has a row a line"
            )
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
        except UnicodeDecodeError as err:
            raise DataError(
                f"{path}:{number}: not UTF-8 ({err.reason}, byte {raw[err.start]:#x}): save it as UTF-8"
            ) from None
        try:
            row = json.loads(text)
        except json.JSONDecodeError as err:
            raise DataError(
                f"{path}:{number}: not JSON ({err.msg}, column {err.colno}): saw {excerpt(text, err.pos)}; "
                "a .jsonl file has one JSON object per line, a .json file may have one list of objects"
            ) from None
        except (ValueError, RecursionError) as err:
            raise DataError(f"{path}:{number}: not JSON that can be read ({err})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: saw {excerpt(text, 0)}, expected a JSON object: one row per line")
        yield number, row


def _only_row(path: Path, compression: str | None, columns: Collection[str]) -> dict[str, Any] | None:
    """Return the row that a JSON document is, or None where it holds rows, or is too large for one."""
    with _open(path, compression) as file:
        text = file.read(_LONGEST_FIRST_LINE)
    try:
        row = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and not row.keys().isdisjoint(columns) else None


def _holds_json_lines(path: Path, compression: str | None) -> bool:
    """Return whether a .json file is JSON lines, as many on the hub are: its first line is an object, more follow."""
    with _open(path, compression) as file:
        first = file.readline(_LONGEST_FIRST_LINE)
        starts_an_object = first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
        if not starts_an_object or len(first) == _LONGEST_FIRST_LINE:
            return False
        try:
            row = json.loads(first.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return False
        if any(not line.isspace() for line in file):
            return True
    # A list of objects in it would be the rows.
    return not any(isinstance(value, list) and isinstance(next(iter(value), None), dict) for value in row.values())


def _csv(path: Path, file: BinaryIO, delimiter: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, is less than a long document
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"{path}:1: two columns are named {twice!r}: rename one")
        for values in reader:
            line = reader.line_num - sum(value.count("\n") for value in values)
            if values and len(values) != len(names):
                raise DataError(
                    f"{path}:{line}: {len(values)} values for {len(names)} columns: fill up short rows with empty "
                    "values, and put quotes around values that hold the delimiter"
                )
            if values:
                yield line, dict(zip(names, values, strict=True))
    except csv.Error as err:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({err})") from None


def _table_rows(path: Path, form: Format) -> Iterator[NumberedRow]:
    import pyarrow as pa

    number = 0
    try:
        for batch in _parquet_batches(path) if form == "parquet" else _arrow_batches(path):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                for row in arrow_rows(batch.slice(start, _BATCH_ROWS)):
                    number += 1
                    yield number, row
    except pa.ArrowInvalid as err:
        raise DataError(f"{path}: not {form.capitalize()} after row {number} ({err})") from None


def _parquet_batches(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)


def _arrow_batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        in_file_form = file.read(6) == b"ARROW1"
        file.seek(0)
        if in_file_form:
            reader = pa.ipc.open_file(file)
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            yield from pa.ipc.open_stream(file)


def arrow_rows(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of a record batch as they were before it gave every object the keys of all others, as nulls."""
    nested = nested_columns(batch.schema)
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError):  # a date that Python has no object for
        rows = _with_texts(batch)
    return [{name: without_nulls(v) if name in nested else v for name, v in row.items()} for row in rows]


def _with_texts(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of a record batch, columns as texts whose values Python cannot hold, such as the year 10000."""
    import pyarrow as pa

    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except (ValueError, OverflowError) as err:
            try:
                columns[name] = column.cast(pa.string()).to_pylist()
            except pa.ArrowException:
                raise DataError(f"column {name!r} holds a value that cannot be read ({err}): drop it") from None
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def nested_columns(schema: Any) -> set[str]:
    """Return the columns of an Arrow schema that hold objects."""

    def holds_objects(kind: Any) -> bool:
        return kind.num_fields > 0 and (
            pa.types.is_struct(kind) or any(holds_objects(kind.field(n).type) for n in range(kind.num_fields))
        )

    import pyarrow as pa

    return {field.name for field in schema if holds_objects(field.type)}


def without_nulls(value: Any) -> Any:
    """Return a value without the keys of its objects that hold nothing."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
