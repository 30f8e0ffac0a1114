"""The columns of a table of scores, for those who show them."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Number: TypeAlias = float | int | None

OF_ALL = ("id", "score", "rank", "chosen", "reason")


def part_names(table: pa.Table) -> list[str]:
    """Return the columns of `scores.parquet` that are the method's own parts of its score."""
    return [name for name in table.column_names if name not in OF_ALL]


def numbers(table: pa.Table, name: str) -> list[Number]:
    """Return the values of a column, (N,); None where the method has none, whole numbers as such."""
    return [plain(value) for value in table[name].to_pylist()]


def plain(value: Number) -> Number:
    """Return None for what is not there, a whole number as an `int`, and any other as it is."""
    if value is None or math.isnan(value):
        return None
    return int(value) if value == int(value) else value


def shown(value: Number, sign: str = "") -> str:
    """Return a number for people: nothing for None, no decimals of whole ones. `sign` is `+` or nothing."""
    if value is None:
        return ""
    return format(value, f"{sign}d" if isinstance(value, int) else f"{sign}.4f")


def by_rank(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return the rows of a table of scores, (N,), the best first and those without a rank last, by id."""
    ranks = [len(table) + 1 if rank is None else rank for rank in table["rank"].to_pylist()]
    return np.argsort(np.array(ranks, dtype=np.int64), kind="stable").astype(np.int64)
