"""Chosen rows -> rows that TRL trains on, with prompts that come out as they were when the row was scored."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adg_plugin.config import IN_MEMORY, ADGConfig, DatasetSpec
from adg_plugin.errors import DataError
from adg_plugin.layouts import Layout, find_layout
from adg_plugin.rows import Rejection, Row, parse_row
from adg_plugin.sources import Record
from adg_plugin.store import RunReader
from adg_plugin.store.files import replacing, writing
from adg_plugin.templates import Template, make_template

TRAINING_FILE = Path("data", "train-00000-of-00001.parquet")  # in a run folder; the name makes it the split `train`

logger = logging.getLogger(__name__)

Parsed = tuple[Row, Layout]


def parse_chosen(data: Mapping[str, Any], where: str, specs: Sequence[DatasetSpec]) -> Parsed:
    """Return a row that was chosen, and its layout by the first of `specs` whose columns it has.

    Raises:
        DataError: none of them fits; the row then does not come from the pool.
    """
    for spec in specs or [IN_MEMORY]:
        layout = find_layout(data, spec)
        if layout is None:
            continue
        row = parse_row(Record(dict(data), where, spec), layout)
        if not isinstance(row, Rejection):
            return row, layout
    raise DataError(f"{where}: the row has columns {', '.join(data)}, which no entry of datasets describes")


def write_training_rows(run: RunReader, ids: Sequence[str], tokenizer: Any, config: ADGConfig) -> None:
    """Write the chosen rows as a table that `trl sft --dataset_name RUN_FOLDER` trains on, in the order of `ids`.

    Rows that no such table can hold leave it out, and say why: `adg select` serves other trainers too.

    Raises:
        StoreError: it cannot be written.
    """
    path = run.path / TRAINING_FILE
    path.unlink(missing_ok=True)
    staged = {row.prompt.id: row for row in run.staged_rows(ids)}
    try:
        parsed = [parse_chosen(json.loads(staged[id].data), staged[id].where, config.datasets) for id in ids]
        rows = training_rows(parsed, tokenizer, config.template)
        table = pa.Table.from_pylist([{**row, "id": id} for row, id in zip(rows, ids, strict=True)])
    except (DataError, pa.ArrowException) as err:
        logger.info("%s is not written: %s", path, err)
        return
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    with replacing(path) as sink:
        pq.write_table(table, sink, compression="zstd")


def training_rows(chosen: Iterable[Parsed], tokenizer: Any, template: str) -> list[dict[str, Any]]:
    """Return the rows as `id` with `messages`, or with `prompt` and `completion`.

    Conversations stay whole (`messages`) where all rows are conversations; otherwise a row's last answer becomes its
    `completion`: turns where the chat template renders them, text where another template does.

    Args:
        chosen: rows with their layouts.
        tokenizer: of the model; its chat template decides between turns and text.
        template: the setting of that name.

    Raises:
        DataError: text prompts and turns are mixed, or the template is one that the trainer does not apply.
    """
    parsed = list(chosen)
    # A .jinja file is the trainer's chat_template_path too.
    own_template = bool(getattr(tokenizer, "chat_template", None))
    chat = template == "chat" or template.endswith((".jinja", ".j2")) or (template == "auto" and own_template)
    if not chat:
        if template not in ("auto", "alpaca", "raw"):
            raise DataError(
                f"template is {template!r}: TRL would render the rows with another one; use auto, chat, alpaca or raw, "
                "or set chat_template_path for the trainer and leave template out"
            )
        writer = make_template(template, tokenizer)
        rows = [_text_row(row, writer) for row, _ in parsed]
    elif template == "auto" and all(row.text is not None for row, _ in parsed):
        rows = [{"prompt": row.text, "completion": row.reference} for row, _ in parsed]
    elif template == "auto" and any(row.text is not None for row, _ in parsed):
        where = next(row.where for row, _ in parsed if row.text is not None)
        raise DataError(
            f"{where}: `prompt` is text, other rows hold turns, and the two are rendered differently: "
            "write the prompts as lists of turns, or train on them separately"
        )
    elif all(layout in ("messages", "sharegpt") for _, layout in parsed):
        rows = [{"messages": _all_turns(row)} for row, _ in parsed]
    else:
        rows = [{"prompt": _prompt_turns(row), "completion": [_answer(row)]} for row, _ in parsed]
    return _with_extras(rows, [row for row, _ in parsed])


def _text_row(row: Row, template: Template) -> dict[str, Any]:
    return {"prompt": template.render(row).text, "completion": row.reference}


def _prompt_turns(row: Row) -> list[dict[str, Any]]:
    return list(row.messages) if row.messages is not None else [{"role": "user", "content": row.text}]


def _answer(row: Row) -> dict[str, Any]:
    """Return the last assistant turn, whole where the row has it as a turn."""
    for column in ("completion", "messages"):
        turns = row.data.get(column)
        if (
            isinstance(turns, list)
            and turns
            and isinstance(turns[-1], Mapping)
            and turns[-1].get("role") == "assistant"
        ):
            return _present(turns[-1])
    return {"role": "assistant", "content": row.reference}


def _all_turns(row: Row) -> list[dict[str, Any]]:
    turns = row.data.get("messages")
    if isinstance(turns, list) and all(isinstance(t, Mapping) and "role" in t and "content" in t for t in turns):
        return [_present(turn) for turn in turns]
    return [*(row.messages or ()), *([_answer(row)] if row.reference else [])]


def _present(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if value is not None}


def _with_extras(rows: list[dict[str, Any]], sources: list[Row]) -> list[dict[str, Any]]:
    has_tools = any(row.tools for row in sources)
    has_kwargs = any(row.chat_template_kwargs for row in sources)
    written = []
    for row, source in zip(rows, sources, strict=True):
        extras: dict[str, Any] = {}
        if has_tools:  # as JSON: a column of tables would give every tool the arguments of all others
            extras["tools"] = json.dumps(list(source.tools)) if source.tools else None
        if has_kwargs:
            extras["chat_template_kwargs"] = source.chat_template_kwargs
        written.append({"id": source.id, **row, **extras})
    return written
