"""Chosen rows -> rows that TRL trains on, with prompts that come out as they were when the row was scored."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
_EXTRAS = ("tools", "chat_template_kwargs")  # columns of rows that have them

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
        table, chosen = TrainerTable(tokenizer, config.template), _chosen(run, ids, config)
        with TableSpool(run.path / "turns") as turns, TableSpool(run.path / "whole") as whole:
            while group := list(islice(chosen, _GROUP_ROWS)):
                for row, layout in group:
                    table.see(row, layout)
                turns.add([table.prompt_and_completion(row) for row, _ in group])
                if table.stays_whole:
                    whole.add([table.whole(row) for row, _ in group])
            names = table.columns()
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
    """Return the rows as `id` with `messages`, or with `prompt` and `completion`; see `TrainerTable`.

    Args:
        whole: False gives prompts and completions even where all rows are conversations.
    """
    table = TrainerTable(tokenizer, template)
    for row, layout in chosen:
        table.see(row, layout)
    names = table.columns(whole=whole)
    write = table.whole if "messages" in names else table.prompt_and_completion
    return [{name: value for name, value in write(row).items() if name in names} for row, _ in chosen]


class TrainerTable:
    """How a trainer gets rows: what is written of each, and the columns, by what those seen so far have in common."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        """Choose between turns and text.

        Args:
            tokenizer: of the model; its chat template decides where `template` is `auto`.

        Raises:
            DataError: the template is one that the trainer does not apply.
        """
        own_template = bool(getattr(tokenizer, "chat_template", None))
        self._write_text: Template | None = None  # None: the trainer's chat template makes text of turns
        # A .jinja file is the trainer's chat_template_path too.
        if not (template == "chat" or template.endswith((".jinja", ".j2")) or (template == "auto" and own_template)):
            if template not in ("auto", *ALPACA, "raw"):
                raise DataError(
                    f"template is {template!r}: TRL would render the rows with another one; use auto, chat, "
                    f"{', '.join(ALPACA)} or raw, or set chat_template_path for the trainer and leave template out"
                )
            self._write_text = make_template(template, tokenizer)
        self._keeps_text = self._write_text is None and template == "auto"  # of prompts that are texts already
        self._rows = self._conversations = self._texts = 0
        self._first_text = ""  # where the first prompt is that is a text already
        self._extras: set[str] = set()

    @property
    def stays_whole(self) -> bool:
        """Whether conversations stay whole (`messages`): all rows are some, and the trainer's template shows them."""
        return self._write_text is None and self._conversations == self._rows

    def see(self, row: Row, layout: Layout) -> None:
        """Take note of a row; a DataError where it has no answer."""
        if row.answer() is None:
            raise DataError(f"{row.where}: the row has no answer to train on")
        self._rows += 1
        self._conversations += layout in ("messages", "sharegpt")
        if row.text is not None:
            self._texts += 1
            self._first_text = self._first_text or row.where
        self._extras |= {name for name in _EXTRAS if getattr(row, name)}

    def columns(self, *, whole: bool = True) -> list[str]:
        """Return a trainer's columns, conversations whole if `whole`; a DataError if text prompts and turns mix."""
        if self._keeps_text and 0 < self._texts < self._rows:
            raise DataError(
                f"{self._first_text}: `prompt` is text, other rows hold turns, and the two are rendered differently: "
                "write the prompts as lists of turns, or train on them separately"
            )
        names = ["messages"] if whole and self.stays_whole else ["prompt", "completion"]
        return ["id", *names, *(name for name in _EXTRAS if name in self._extras)]

    def whole(self, row: Row) -> dict[str, Any]:
        """Return a conversation with all its turns as `messages`."""
        return {"id": row.id, "messages": _all_turns(row), **_extras(row)}

    def prompt_and_completion(self, row: Row) -> dict[str, Any]:
        """Return a row whose last answer is its `completion`."""
        text = self._write_text(row).text if self._write_text is not None else row.text if self._keeps_text else None
        if text is not None:
            return {"id": row.id, "prompt": text, "completion": row.reference, **_extras(row)}
        turns = list(row.messages or [{"role": "user", "content": row.text}])
        return {"id": row.id, "prompt": turns, "completion": [row.answer()], **_extras(row)}


def _extras(row: Row) -> dict[str, Any]:
    # Tools as JSON: a column of tables would give every tool the arguments of all others.
    tools = json.dumps(list(row.tools)) if row.tools else None
    return {"tools": tools, "chat_template_kwargs": row.chat_template_kwargs}


def _all_turns(row: Row) -> list[dict[str, Any]]:
    turns = row.data.get("messages")
    if isinstance(turns, list) and all(isinstance(t, Mapping) and "role" in t and "content" in t for t in turns):
        return [{key: value for key, value in turn.items() if value is not None} for turn in turns]
    return [*(row.messages or ()), *([answer] if (answer := row.answer()) else [])]
