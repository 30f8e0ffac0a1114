"""A file of label vectors, made by any embedding model -> the vector of each label, for MIG's links."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from adg_plugin.errors import DataError
from adg_plugin.selectors.label_graph import normalised

_READERS = {".parquet": pq.read_table, ".jsonl": pj.read_json, ".json": pj.read_json}
_COLUMNS = ("label", "vector")


def read_label_vectors(path: str | Path) -> dict[str, npt.NDArray[np.float64]]:
    """Return the vector of each label in a Parquet or JSONL file with columns `label` and `vector`.

    Raises:
        DataError: the file cannot be read, lacks a column, holds something else in it, or has a label twice.
    """
    path = Path(path).expanduser()
    read = _READERS.get(path.suffix)
    if read is None:
        raise DataError(f"label_vectors is {str(path)!r}: give a .parquet or .jsonl file with columns label and vector")
    try:
        table = read(path)
    except (OSError, pa.ArrowException) as err:
        raise DataError(f"label_vectors: cannot read {path}: {err}") from err
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise DataError(f"label_vectors: {path} has no column {missing[0]!r}: it needs label and vector")
    labels, vectors = (table[name].to_pylist() for name in _COLUMNS)
    found: dict[str, npt.NDArray[np.float64]] = {}
    first: dict[str, tuple[int, str]] = {}  # row and label as it is written, by the normalised label
    for row, (label, vector) in enumerate(zip(labels, vectors, strict=True), 1):
        try:
            numbers = np.array(vector, dtype=np.float64)
        except (TypeError, ValueError):
            numbers = np.empty(0)
        if not isinstance(label, str) or numbers.ndim != 1 or not len(numbers):
            raise DataError(f"label_vectors: row {row} of {path} is {label!r}: use a text and a list of numbers")
        earlier, written = first.setdefault(normalised(label), (row, label))
        if earlier != row:
            differing = " but for case and white space" if written != label else ""
            raise DataError(
                f"label_vectors: row {row} of {path} is {label!r}, which is label {written!r} of row {earlier}"
                f"{differing}: keep one of them"
            )
        found[label] = numbers
    return found
