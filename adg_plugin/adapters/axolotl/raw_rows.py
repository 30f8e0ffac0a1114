"""The rows as they are in the data sets of an Axolotl YAML, before Axolotl makes tokens of them, and their formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.readers import without_nulls
from adg_plugin.data.rows import Rejection, Row, parse_row
from adg_plugin.data.sources import Record
from adg_plugin.data.templates import PromptText, framed
from adg_plugin.errors import ConfigError, DataError


def columns_of(source: Any) -> DatasetSpec:
    """Return how the columns of an entry of `datasets` are named, as `adg select` would have it."""
    columns = {key: value for key, value in source.columns.items() if key in DatasetSpec.model_fields and value}
    mappings = columns.pop("message_property_mappings", None) or {}
    columns["message_property_mappings"] = {k: v for k, v in mappings.items() if k in ("role", "content")}
    return DatasetSpec(path=source.path, **columns)


def read_raw(
    data: Mapping[str, Any], where: str, spec: DatasetSpec, template_kwargs: Mapping[str, Any]
) -> Row | Rejection | None:
    """Return a raw row in a known layout, else None; a ConfigError if parts of a turn say whether they are trained."""
    # A table gives every row the columns of all others; without the empty ones it is the row that was written.
    present = without_nulls(data)
    _refuse_flags(present, where)
    try:
        row = parse_row(Record(present, where, spec))
    except DataError:
        return None
    if isinstance(row, Row) and template_kwargs:
        return replace(row, chat_template_kwargs={**template_kwargs, **row.chat_template_kwargs})
    return row


def _refuse_flags(data: Mapping[str, Any], where: str) -> None:
    for turns in data.values():
        for turn in turns if isinstance(turns, list) else []:
            parts = turn.get("content") if isinstance(turn, Mapping) else None
            for part in parts if isinstance(parts, list) else []:
                flag = next((key for key in ("train", "weight") if isinstance(part, Mapping) and key in part), None)
                if flag:
                    raise ConfigError(
                        [f"{where}: a part of `content` has `{flag}`: it hides where the answer begins; drop it"]
                    )


def by_formats(own: Mapping[str, Any], row: Row) -> PromptText:
    """Return the prompt that an entry whose `type` is a mapping, `own`, makes of a row.

    What is asked reaches from the first `{instruction}` or `{input}` of the format to the last. `{system}` stands
    before, where a row has a system prompt or the entry names one.
    """
    form = own["format"] if row.input else own["no_input_format"]
    first, last = len(form.partition("{")[0]), len(form.rpartition("}")[2])
    text = form.format(instruction=row.instruction, input=row.input)
    asked, after = text[first : len(text) - last], text[len(text) - last :]
    opening = row.messages[0] if row.messages else {}
    system = opening.get("content", "") if opening.get("role") == "system" else own["system_prompt"]
    head = own["system_format"].format(system=system) if system else ""
    return framed(head + text[:first], asked, after, special_tokens=True)
