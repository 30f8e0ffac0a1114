"""Chosen rows -> rows that TRL trains on, with prompts that come out as they were when the row was scored."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adg_plugin.config.schema import IN_MEMORY, ADGConfig, DatasetSpec
from adg_plugin.data.layouts import Layout, find_layout
from adg_plugin.data.rows import Row, parse_row
from adg_plugin.data.sources import Record
from adg_plugin.data.templates import ALPACA, Template, make_template
from adg_plugin.errors import DataError
from adg_plugin.store import RunReader
from adg_plugin.store.files import replacing, writing

TRAINING_FILE = Path("data", "train-00000-of-00001.parquet")  # in a run folder; the name makes it the split `train`
_GROUP_ROWS = 1000

logger = logging.getLogger(__name__)

Parsed = tuple[Row, Layout]


def parse_chosen(data: Mapping[str, Any], where: str, spec: DatasetSpec) -> Parsed:
    """Return a row that was chosen, and its layout.

    Raises:
        DataError: it is not as `spec` describes; the row then does not come from the pool.
    """
    layout = find_layout(data, spec)
    row = None if layout is None else parse_row(Record(dict(data), where, spec), layout)
    if layout is None or not isinstance(row, Row):
        raise DataError(
            f"{where}: the row has columns {', '.join(data)}, which its entry of datasets does not describe"
        )
    return row, layout


def write_training_rows(run: RunReader, ids: Sequence[str], tokenizer: Any, config: ADGConfig) -> None:
    """Write the chosen rows as a table that `trl sft --dataset_name RUN_FOLDER` trains on, in the order of `ids`.

    Rows that no such table can hold leave it out, and say why: `adg select` serves other trainers too. They are read
    from selected.jsonl twice, a group at a time.

    Raises:
        StoreError: it cannot be written.
    """
    path = run.path / TRAINING_FILE
    with writing(path):
        path.unlink(missing_ok=True)
    specs = config.datasets or (IN_MEMORY,)
    origins = {row.prompt.id: (row.where, specs[row.dataset]) for row in run.staged_rows(ids)}

    def chosen() -> Iterator[Parsed]:
        with run.selected_path.open(encoding="utf-8") as lines:
            for id, line in zip(ids, lines, strict=True):
                yield parse_chosen(json.loads(line), *origins[id])

    try:
        form = Form.of(chosen(), tokenizer, config.template)
        schemas = [table.schema for table in _tables(form, chosen(), ids)]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        with replacing(path) as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for table in _tables(form, chosen(), ids):
                writer.write_table(pa.Table.from_pylist(table.to_pylist(), schema))
    except (DataError, pa.ArrowException, OverflowError) as err:
        logger.info("%s is not written: %s", path, err)


def _tables(form: Form, chosen: Iterator[Parsed], ids: Sequence[str]) -> Iterator[pa.Table]:
    names = iter(ids)
    while group := list(islice(chosen, _GROUP_ROWS)):
        yield pa.Table.from_pylist([{**form.row(row), "id": next(names)} for row, _ in group])


def training_rows(
    chosen: Sequence[Parsed], tokenizer: Any, template: str, *, whole: bool = True
) -> list[dict[str, Any]]:
    """Return the rows as `id` with `messages`, or with `prompt` and `completion`; see `Form`.

    Args:
        whole: False gives prompts and completions even where all rows are conversations.

    Raises:
        DataError: as `Form.of`.
    """
    form = Form.of(chosen, tokenizer, template)
    form = replace(form, whole=form.whole and whole)
    return [form.row(row) for row, _ in chosen]


@dataclass(frozen=True, slots=True)
class Form:
    """How a trainer gets the rows: one form for all of them.

    Attributes:
        text: writes prompts as text, or None where the trainer's chat template does it from turns.
        whole: conversations stay whole (`messages`); otherwise a row's last answer becomes its `completion`.
        as_is: prompts are texts already.
        has_tools: some row has tools.
        has_kwargs: some row has keywords for the chat template.
    """

    text: Template | None
    whole: bool
    as_is: bool
    has_tools: bool
    has_kwargs: bool

    @classmethod
    def of(cls, chosen: Iterable[Parsed], tokenizer: Any, template: str) -> Form:
        """Return the form for these rows.

        Args:
            chosen: rows with their layouts.
            tokenizer: of the model; its chat template decides between turns and text.
            template: the setting of that name.

        Raises:
            DataError: a row has no answer, text prompts and turns are mixed, or the template is one that the trainer
                does not apply.
        """
        writer = _text_writer(tokenizer, template)
        texts = conversations = total = 0
        first_text, has_tools, has_kwargs = "", False, False
        for row, layout in chosen:
            if row.answer() is None:
                raise DataError(f"{row.where}: the row has no answer to train on")
            total += 1
            conversations += layout in ("messages", "sharegpt")
            if row.text is not None:
                texts += 1
                first_text = first_text or row.where
            has_tools |= bool(row.tools)
            has_kwargs |= bool(row.chat_template_kwargs)
        if writer is None and template == "auto" and 0 < texts < total:
            raise DataError(
                f"{first_text}: `prompt` is text, other rows hold turns, and the two are rendered differently: "
                "write the prompts as lists of turns, or train on them separately"
            )
        as_is = writer is None and template == "auto" and texts == total
        return cls(writer, writer is None and conversations == total, as_is, has_tools, has_kwargs)

    def row(self, row: Row) -> dict[str, Any]:
        """Return what a trainer gets for one of the rows."""
        written: dict[str, Any] = {"id": row.id}
        if self.text is not None:
            written |= {"prompt": self.text.render(row).text, "completion": row.reference}
        elif self.as_is:
            written |= {"prompt": row.text, "completion": row.reference}
        elif self.whole:
            written |= {"messages": _all_turns(row)}
        else:
            written |= {"prompt": _prompt_turns(row), "completion": [row.answer()]}
        if self.has_tools:  # as JSON: a column of tables would give every tool the arguments of all others
            written["tools"] = json.dumps(list(row.tools)) if row.tools else None
        if self.has_kwargs:
            written["chat_template_kwargs"] = row.chat_template_kwargs
        return written


def _text_writer(tokenizer: Any, template: str) -> Template | None:
    own_template = bool(getattr(tokenizer, "chat_template", None))
    # A .jinja file is the trainer's chat_template_path too.
    if template == "chat" or template.endswith((".jinja", ".j2")) or (template == "auto" and own_template):
        return None
    if template not in ("auto", *ALPACA, "raw"):
        raise DataError(
            f"template is {template!r}: TRL would render the rows with another one; use auto, chat, "
            f"{', '.join(ALPACA)} or raw, or set chat_template_path for the trainer and leave template out"
        )
    return make_template(template, tokenizer)


def _prompt_turns(row: Row) -> list[dict[str, Any]]:
    return list(row.messages) if row.messages is not None else [{"role": "user", "content": row.text}]


def _all_turns(row: Row) -> list[dict[str, Any]]:
    turns = row.data.get("messages")
    if isinstance(turns, list) and all(isinstance(t, Mapping) and "role" in t and "content" in t for t in turns):
        return [{key: value for key, value in turn.items() if value is not None} for turn in turns]
    return [*(row.messages or ()), *([answer] if (answer := row.answer()) else [])]
