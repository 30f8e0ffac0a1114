"""Chosen rows -> rows that TRL trains on, with prompts that come out as they were when the row was scored."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.config.schema import IN_MEMORY, ADGConfig, DatasetSpec
from adg_plugin.data.layouts import Layout, find_layout
from adg_plugin.data.rows import Row, parse_row
from adg_plugin.data.sources import Record
from adg_plugin.data.templates import ALPACA, Template, make_template
from adg_plugin.errors import DataError
from adg_plugin.store import RunReader
from adg_plugin.store.files import writing
from adg_plugin.store.spool import TableSpool

TRAINING_FILE = Path("data", "train-00000-of-00001.parquet")  # in a run folder; the name makes it the split `train`
_GROUP_ROWS = 1000

logger = logging.getLogger(__name__)

Parsed = tuple[Row, Layout]


def parse_chosen(data: Mapping[str, Any], where: str, spec: DatasetSpec) -> Parsed:
    """Return a chosen row and its layout; a DataError where it is not as `spec` says, so not from the pool."""
    layout = find_layout(data, spec)
    row = None if layout is None else parse_row(Record(dict(data), where, spec), layout)
    if layout is None or not isinstance(row, Row):
        raise DataError(
            f"{where}: the row has columns {', '.join(data)}, which its entry of datasets does not describe"
        )
    return row, layout


def write_training_rows(run: RunReader, ids: Sequence[str], tokenizer: Any, config: ADGConfig) -> None:
    """Write the chosen rows as a table that `trl sft --dataset_name RUN_FOLDER` trains on, in the order of `ids`.

    Rows that no such table can hold leave it out, and say why: `adg select` serves other trainers too. Each row is
    parsed once. What only all rows together decide (the form, the types of the columns) is not known before the last
    one, so their groups wait on the disk until then.

    Raises:
        StoreError: it cannot be written.
    """
    path = run.path / TRAINING_FILE
    with writing(path):
        path.unlink(missing_ok=True)
    try:
        form, seen, chosen = Form.of(tokenizer, config.template), Seen(), _chosen(run, ids, config)
        with TableSpool(run.path / "turns") as turns, TableSpool(run.path / "whole") as whole:
            while group := list(islice(chosen, _GROUP_ROWS)):
                for row, layout in group:
                    seen.add(row, layout)
                turns.add([form.prompt_and_completion(row) for row, _ in group])
                if form.may_be_whole and seen.all_conversations:
                    whole.add([form.whole(row) for row, _ in group])
            names = seen.columns(form)
            (whole if "messages" in names else turns).write(path, names)
    except (DataError, pa.ArrowException, OverflowError) as err:
        logger.info("%s is not written: %s", path, err)


def _chosen(run: RunReader, ids: Sequence[str], config: ADGConfig) -> Iterator[Parsed]:
    specs = config.datasets or (IN_MEMORY,)
    origins: dict[str, tuple[str, DatasetSpec]] = {}
    wanted = pa.array(ids, pa.string())
    for table in run.staged_columns(["id", "where", "dataset"]):
        for found in table.filter(pc.is_in(table["id"], value_set=wanted)).to_pylist():
            origins[found["id"]] = found["where"], specs[found["dataset"]]
    with run.selected_path.open(encoding="utf-8") as lines:
        for id, line in zip(ids, lines, strict=True):
            row, layout = parse_chosen(json.loads(line), *origins[id])
            yield replace(row, id=id), layout


def training_rows(
    chosen: Sequence[Parsed], tokenizer: Any, template: str, *, whole: bool = True
) -> list[dict[str, Any]]:
    """Return the rows as `id` with `messages`, or with `prompt` and `completion`; see `Form` and `Seen`.

    Args:
        whole: False gives prompts and completions even where all rows are conversations.
    """
    form, seen = Form.of(tokenizer, template), Seen()
    for row, layout in chosen:
        seen.add(row, layout)
    names = seen.columns(form, whole=whole)
    write = form.whole if "messages" in names else form.prompt_and_completion
    return [{name: value for name, value in write(row).items() if name in names} for row, _ in chosen]


@dataclass(frozen=True, slots=True)
class Form:
    """How a trainer gets rows.

    Attributes:
        text: writes prompts as text, or None where the trainer's chat template does it from turns.
        keeps_text: prompts that are texts already stay so.
    """

    text: Template | None
    keeps_text: bool

    @classmethod
    def of(cls, tokenizer: Any, template: str) -> Form:
        """Return the form under a template.

        Args:
            tokenizer: of the model; its chat template decides between turns and text.

        Raises:
            DataError: the template is one that the trainer does not apply.
        """
        writer = _text_writer(tokenizer, template)
        return cls(writer, keeps_text=writer is None and template == "auto")

    @property
    def may_be_whole(self) -> bool:
        """Whether conversations stay whole (`messages`), where all rows are conversations."""
        return self.text is None

    def whole(self, row: Row) -> dict[str, Any]:
        """Return a conversation with all its turns as `messages`."""
        return {"id": row.id, "messages": _all_turns(row), **_extras(row)}

    def prompt_and_completion(self, row: Row) -> dict[str, Any]:
        """Return a row whose last answer is its `completion`."""
        pair: dict[str, Any]
        if self.text is not None:
            pair = {"prompt": self.text.render(row).text, "completion": row.reference}
        elif self.keeps_text and row.text is not None:
            pair = {"prompt": row.text, "completion": row.reference}
        else:
            pair = {"prompt": _prompt_turns(row), "completion": [row.answer()]}
        return {"id": row.id, **pair, **_extras(row)}


@dataclass(slots=True)
class Seen:
    """What the rows so far have in common: it decides which columns a trainer gets."""

    rows: int = 0
    conversations: int = 0
    texts: int = 0  # prompts that are texts already
    first_text: str = ""  # where the first of them is
    has_tools: bool = False
    has_kwargs: bool = False  # keywords for the chat template

    @property
    def all_conversations(self) -> bool:
        """Whether no row is of another layout."""
        return self.conversations == self.rows

    def add(self, row: Row, layout: Layout) -> None:
        """Take a row; a DataError where it has no answer."""
        if row.answer() is None:
            raise DataError(f"{row.where}: the row has no answer to train on")
        self.rows += 1
        self.conversations += layout in ("messages", "sharegpt")
        if row.text is not None:
            self.texts += 1
            self.first_text = self.first_text or row.where
        self.has_tools |= bool(row.tools)
        self.has_kwargs |= bool(row.chat_template_kwargs)

    def columns(self, form: Form, *, whole: bool = True) -> list[str]:
        """Return a trainer's columns, conversations whole if `whole`; a DataError if text prompts and turns mix."""
        if form.keeps_text and 0 < self.texts < self.rows:
            raise DataError(
                f"{self.first_text}: `prompt` is text, other rows hold turns, and the two are rendered differently: "
                "write the prompts as lists of turns, or train on them separately"
            )
        stay_whole = whole and form.may_be_whole and self.all_conversations
        return [
            "id",
            *(["messages"] if stay_whole else ["prompt", "completion"]),
            *(["tools"] if self.has_tools else []),
            *(["chat_template_kwargs"] if self.has_kwargs else []),
        ]


def _extras(row: Row) -> dict[str, Any]:
    # Tools as JSON: a column of tables would give every tool the arguments of all others.
    tools = json.dumps(list(row.tools)) if row.tools else None
    return {"tools": tools, "chat_template_kwargs": row.chat_template_kwargs}


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
