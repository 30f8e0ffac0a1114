"""What users give MIG: labels and quality in columns of the rows, and vectors of labels in a file."""

from __future__ import annotations

import ast
import json
import math
import re
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from adg_plugin.data.cells import is_missing
from adg_plugin.errors import DataError, first_line
from adg_plugin.store import RunReader

_SHOWN_CHARACTERS = 80
_LABELS_FIX = "use a list of texts or of whole numbers, or one text with commas between the labels"
_QUALITY_FIX = "use a number of 0 or more"
_READERS = {".parquet": pq.read_table, ".jsonl": pj.read_json, ".json": pj.read_json}
_VECTOR_COLUMNS = ("label", "vector")
_VECTORS_FIX = "give a .parquet or .jsonl with columns label and vector"


def normalised(label: str) -> str:
    """Return the label in lower case, without white space around it."""
    return label.strip().lower()


def read_labels(value: Any, column: str) -> tuple[str, ...]:
    """Return the labels in a row's column, normalised, each once, in their order.

    Args:
        value: a list of texts or whole numbers, such a list as text in JSON or as Python writes it, one whole number, a
            text with commas or semicolons between the labels, or nothing.

    Raises:
        ValueError: it is something else; the message is fit for a rejection.
    """
    if is_missing(value):
        return ()
    parts = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, str):
        found = _listed(value)
        parts = re.split("[,;]", value) if found is None else found
        if found is None and value.strip().startswith(("[", "{")):
            raise ValueError(_refusal(column, value, _LABELS_FIX))
    texts = [_label(part) for part in parts]
    if None in texts:
        raise ValueError(_refusal(column, value, _LABELS_FIX))
    return tuple(dict.fromkeys(label for text in texts if (label := normalised(text or ""))))


def has_labels(value: Any) -> bool:
    """Return whether a row's column holds labels, be it such that cannot be read."""
    try:
        return bool(read_labels(value, ""))
    except ValueError:
        return True


def read_quality(value: Any, column: str) -> float | None:
    """Return a row's quality (a number, or text of one) or None; a ValueError, fit as a detail, unless finite, >= 0."""
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    number = math.nan
    if isinstance(value, str | Real) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(_refusal(column, value, _QUALITY_FIX))
    return number


def has_quality(value: Any) -> bool:
    """Return whether a row's column holds a quality, be it one that cannot be read."""
    try:
        return read_quality(value, "") is not None
    except ValueError:
        return True


def column_of(data: str, column: str) -> Any:
    """Return the value of a column in a staged row, None where it lacks it; a row that does not name it is not read."""
    return json.loads(data).get(column) if json.dumps(column, ensure_ascii=False) in data else None


def any_labels(run: RunReader, column: str) -> bool:
    """Return whether any staged row has labels in the column, be it such that cannot be read: nothing replaces them."""
    return any(
        has_labels(column_of(text, column))
        for table in run.staged_columns(["data"])
        for text in table["data"].to_pylist()
    )


def _listed(text: str) -> list[Any] | None:
    """Return the list that a text holds, as JSON or as Python writes it; None where it is no such text."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        return found if isinstance(found, list) else None
    return None


def _label(value: Any) -> str | None:
    """Return one label as text; None where it is none. Tables with gaps turn whole numbers into 3.0."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        return None
    return str(int(value))


def _refusal(column: str, value: Any, fix: str) -> str:
    text = repr(value)
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
    return f"column {column!r} is {shown}: {fix}"


def read_label_vectors(path: str | Path) -> dict[str, npt.NDArray[np.float64]]:
    """Return the vector of each label in a Parquet or JSONL file with columns `label` and `vector`.

    The vectors are of one width, and none is zero.

    Raises:
        DataError: the file cannot be read, lacks a column, holds something else in it, or has a label twice.
    """
    named = f"label_vectors is {str(path)!r}"
    table = _table(Path(path).expanduser(), named)
    labels, vectors = (table[name].to_pylist() for name in _VECTOR_COLUMNS)
    found: dict[str, npt.NDArray[np.float64]] = {}
    first: dict[str, tuple[int, str]] = {}  # row and label as it is written, by the normalised label
    width = 0
    for row, (label, vector) in enumerate(zip(labels, vectors, strict=True), 1):
        numbers = _numbers(vector)
        if not isinstance(label, str) or not len(numbers):
            raise DataError(f"{named}: row {row} is {label!r}: use a text and a list of numbers")
        width = width or len(numbers)
        if len(numbers) != width:
            raise DataError(
                f"{named}: row {row} is {label!r} with {len(numbers)} numbers, and row 1 has {width}: give all of them "
                "one width"
            )
        with np.errstate(over="ignore"):
            length = float(np.linalg.norm(numbers))
        if not math.isfinite(length) or length == 0:
            raise DataError(
                f"{named}: row {row} is {label!r}, a vector of length {length}: give one that is finite and not zero"
            )
        earlier, written = first.setdefault(normalised(label), (row, label))
        if earlier != row:
            differing = " but for case and white space" if written != label else ""
            raise DataError(
                f"{named}: row {row} is {label!r}, which is label {written!r} of row {earlier}{differing}: keep one of "
                "them"
            )
        found[label] = numbers
    return found


def _table(path: Path, named: str) -> pa.Table:
    """Return the file's table, or raise a DataError that begins with `named`."""
    read = _READERS.get(path.suffix)
    if read is None:
        raise DataError(f"{named}: {_VECTORS_FIX}")
    if not path.exists():
        raise DataError(f"{named}: no such file; {_VECTORS_FIX}")
    try:
        table = read(path)
    except (OSError, pa.ArrowException) as err:
        raise DataError(f"{named}: cannot be read ({first_line(err)}); {_VECTORS_FIX}") from err
    if missing := [name for name in _VECTOR_COLUMNS if name not in table.column_names]:
        raise DataError(f"{named}: no column {missing[0]!r}; {_VECTORS_FIX}")
    return table


def _numbers(vector: object) -> npt.NDArray[np.float64]:
    """Return the numbers of a vector; none where it is something else."""
    try:
        numbers = np.array(vector, dtype=np.float64)
    except (TypeError, ValueError):
        return np.empty(0)
    return numbers if numbers.ndim == 1 else np.empty(0)
