"""Columns of a row -> its labels and its quality, for MIG."""

from __future__ import annotations

import ast
import json
import math
import re
from contextlib import suppress
from numbers import Real
from typing import Any

from adg_plugin.data.layouts import is_missing
from adg_plugin.selectors.mig.graph import normalised
from adg_plugin.store import RunReader

_SHOWN_CHARACTERS = 80
_LABELS_FIX = "use a list of texts or of whole numbers, or one text with commas between the labels"
_QUALITY_FIX = "use a number of 0 or more"


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


def listed_labels(run: RunReader, column: str) -> tuple[bool, bool]:
    """Return whether any staged row has something in its column of labels, and whether any has nothing there.

    It counts labels that cannot be read: those rows will be rejected, and nothing makes up for theirs.
    """
    some = lacking = False
    for table in run.staged_columns(["data"]):
        for text in table["data"].to_pylist():
            if has_labels(column_of(text, column)):
                some = True
            else:
                lacking = True
            if some and lacking:
                return some, lacking
    return some, lacking


def lacks_quality(run: RunReader, column: str) -> bool:
    """Return whether any staged row with an answer in words has nothing in its column of quality."""
    return any(
        bool((row["reference"] or "").strip()) and not has_quality(column_of(row["data"], column))
        for table in run.staged_columns(["reference", "data"])
        for row in table.to_pylist()
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
