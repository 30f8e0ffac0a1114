"""A file of label vectors, made by any embedding model -> the vector of each label, for MIG's links."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from adg_plugin.errors import DataError, first_line
from adg_plugin.selectors.mig.graph import normalised

_READERS = {".parquet": pq.read_table, ".jsonl": pj.read_json, ".json": pj.read_json}
_COLUMNS = ("label", "vector")
_FIX = "give a .parquet or .jsonl with columns label and vector"


def read_label_vectors(path: str | Path) -> dict[str, npt.NDArray[np.float64]]:
    """Return the vector of each label in a Parquet or JSONL file with columns `label` and `vector`.

    The vectors are of one width, and none is zero.

    Raises:
        DataError: the file cannot be read, lacks a column, holds something else in it, or has a label twice.
    """
    named = f"label_vectors is {str(path)!r}"
    table = _table(Path(path).expanduser(), named)
    labels, vectors = (table[name].to_pylist() for name in _COLUMNS)
    found: dict[str, npt.NDArray[np.float64]] = {}
    first: dict[str, tuple[int, str]] = {}  # row and label as it is written, by the normalised label
    width: int | None = None
    for row, (label, vector) in enumerate(zip(labels, vectors, strict=True), 1):
        numbers = _numbers(vector)
        if not isinstance(label, str) or not len(numbers):
            raise DataError(f"{named}: row {row} is {label!r}: use a text and a list of numbers")
        width = len(numbers) if width is None else width
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
        raise DataError(f"{named}: {_FIX}")
    if not path.exists():
        raise DataError(f"{named}: no such file; {_FIX}")
    try:
        table = read(path)
    except (OSError, pa.ArrowException) as err:
        raise DataError(f"{named}: cannot be read ({first_line(err)}); {_FIX}") from err
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise DataError(f"{named}: no column {missing[0]!r}; {_FIX}")
    return table


def _numbers(vector: object) -> npt.NDArray[np.float64]:
    """Return the numbers of a vector; none where it is something else."""
    try:
        numbers = np.array(vector, dtype=np.float64)
    except (TypeError, ValueError):
        return np.empty(0)
    return numbers if numbers.ndim == 1 else np.empty(0)
