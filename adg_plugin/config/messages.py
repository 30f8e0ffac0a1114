"""pydantic's errors -> sentences that name key, value and fix."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

NO_POOL = "datasets is missing: give a pool, such as datasets: [pool.jsonl]"

_FIXES = {  # by pydantic's name of the error, for settings that bring no fix of their own
    "string_type": "use text; in YAML, with quotes around it",
    "string_too_short": "use text of at least one character, or leave it out",
    "too_short": "use text of at least one character, or leave it out",
    "bool_type": "use true or false",
    "bool_parsing": "use true or false",
    "tuple_type": "use a list of paths, or of mappings with `path`",
    "model_type": "use a path, or a mapping with `path`",
    "model_attributes_type": "use a path, or a mapping with `path`",
    "dict_type": "use a mapping",
}
_RANGES = {  # by the limits that a number's field has
    ("ge",): ", {ge} or more",
    ("ge", "le"): " from {ge} to {le}",
    ("gt", "le"): " above {gt} and up to {le}",
}


def sentence(error: ErrorDetails, prefix: str, schema: type[BaseModel], entries: Mapping[str, type[BaseModel]]) -> str:
    """Return what is wrong with one setting.

    Args:
        prefix: put before the key, `adg.` for a block in a larger file.
        schema: the settings; a field's own fix is under `fix` in its `json_schema_extra`, or follows from its limits.
        entries: by name of a setting that holds others, or a list of such, the schema of those.
    """
    location = error["loc"]
    key = prefix + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).removeprefix(".")
    if error["type"] in ("extra_forbidden", "invalid_key"):
        within = entries.get(str(location[0]), schema) if len(location) > 1 else schema
        close = difflib.get_close_matches(str(location[-1]), within.model_fields, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(sorted(within.model_fields))}"
        return f"{key} is not a setting: {hint}"
    if error["type"] == "missing":
        return f"{key} is missing: set it"
    return f"{key} is {error['input']!r}: {_fix(error, schema, entries)}"


def _fix(error: ErrorDetails, schema: type[BaseModel], entries: Mapping[str, type[BaseModel]]) -> str:
    location = error["loc"]
    if "message" in error.get("ctx", {}):  # a validator of ours knows better than the setting's own fix
        return str(error["ctx"]["message"])
    if len(location) == 2 and location[0] in entries:
        schema, location = entries[str(location[0])], location[1:]
    if len(location) == 1 and location[0] in schema.model_fields:
        field = schema.model_fields[str(location[0])]
        if isinstance(field.json_schema_extra, dict):
            return str(field.json_schema_extra["fix"])
        if number := _number(field):
            return number
    if error["type"] == "literal_error":
        return literal_fix(error["input"], error.get("ctx", {}).get("expected", ""))
    message = error["msg"]
    return _FIXES.get(error["type"]) or message[0].lower() + message[1:]


def _number(field: FieldInfo) -> str | None:
    """Return how to write a number within the field's limits; None where it has none."""
    limits = {
        name: getattr(limit, name) for limit in field.metadata for name in ("ge", "gt", "le") if hasattr(limit, name)
    }
    if not limits:
        return None
    kind = "whole number" if int in (field.annotation, *get_args(field.annotation)) else "number"
    return (
        f"use a {kind}{_RANGES[tuple(limits)].format(**limits)}{', or leave it out' if field.default is None else ''}"
    )


def listed(values: Sequence[str]) -> str:
    """Return the values as pydantic lists those that are expected: 'a', 'b' or 'c'."""
    *first, last = map(repr, values)
    return f"{', '.join(first)} or {last}" if first else last


def literal_fix(value: object, expected: str) -> str:
    """Return what to write in the place of a value, and which of the expected ones is close to it."""
    choices = [c.strip().strip("'") for c in expected.replace(" or ", ", ").split(",")]
    close = difflib.get_close_matches(str(value), choices, n=1)
    return f"use {expected}" + (f"; did you mean `{close[0]}`?" if close else "")
