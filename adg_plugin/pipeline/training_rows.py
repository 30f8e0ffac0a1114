"""Chosen rows -> rows that TRL trains on, with prompts that come out as they were when the row was scored."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adg_plugin.config.schema import IN_MEMORY, ADGConfig, DatasetSpec
from adg_plugin.data.cells import UnusableRowError
from adg_plugin.data.layouts import Layout, find_layout
from adg_plugin.data.rows import Rejection, Row, parse_row
from adg_plugin.data.sources import Record
from adg_plugin.data.templates import ALPACA, Template, make_template, make_trained
from adg_plugin.errors import DataError
from adg_plugin.store import RunReader
from adg_plugin.store.files import make_folder, replacing, writing
from adg_plugin.store.spool import RowSpool

TRAINING_FILE = Path("data", "train-00000-of-00001.parquet")  # in a run folder; the name makes it the split `train`
_GROUP_ROWS = 1000

logger = logging.getLogger(__name__)

Parsed = tuple[Row, Layout]
Parts = dict[str, Any]  # of a row, as JSON holds them; see `Form.parts`


def parse_chosen(data: Mapping[str, Any], where: str, spec: DatasetSpec) -> Parsed:
    """Return a chosen row and its layout; a DataError where it is not as `spec` says, so not from the pool."""
    layout = find_layout(data, spec)
    if layout is None:
        raise DataError(
            f"{where}: the row has columns {', '.join(data)}, which its entry of datasets does not describe"
        )
    row = parse_row(Record(dict(data), where, spec), layout)
    if isinstance(row, Rejection):
        raise DataError(f"{where}: {row.detail}")
    return row, layout


def write_training_rows(run: RunReader, ids: Sequence[str], tokenizer: Any, config: ADGConfig) -> None:
    """Write the chosen rows as a table that `trl sft --dataset_name RUN_FOLDER` trains on, in the order of `ids`.

    Rows that no such table can hold leave it out, and say why: `adg select` serves other trainers too. Each row is
    parsed once. What only all rows together decide, the columns and their types, is not known before the last one, so
    they wait on the disk until then.

    Raises:
        StoreError: it cannot be written.
    """
    path = run.path / TRAINING_FILE
    with writing(path):
        path.unlink(missing_ok=True)
    try:
        form, seen, chosen = Form.of(tokenizer, config.template), Seen(), _chosen(run, ids, config)
        with RowSpool(run.path / "rows") as spool:
            while group := list(islice(chosen, _GROUP_ROWS)):
                spool.add(seen.add(group, form))
            columns = seen.columns(form)
            make_folder(path.parent)
            with replacing(path) as sink, pq.ParquetWriter(sink, columns.schema(), compression="zstd") as file:
                for rows in spool.groups(_GROUP_ROWS):
                    file.write_table(columns.table(rows))
    except DataError as err:
        logger.warning("%s is not written: %s", path, err)


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


def training_table(
    chosen: Sequence[Parsed], tokenizer: Any, template: str, *, whole: bool = True, compare: bool = True
) -> pa.Table:
    """Return the rows as `id` with `messages`, or with `prompt` and `completion`; see `Form` and `Columns`.

    Args:
        tokenizer: of the model.
        template: the setting of that name.
        whole: False gives prompts and completions even where all rows are conversations.
        compare: warn of rows whose prompt is not the beginning of what is trained.

    Raises:
        DataError: no row has an answer, or text prompts and turns are mixed.
    """
    form, seen = Form.of(tokenizer, template), Seen()
    parts = seen.add(chosen, form, compare=compare)
    return seen.columns(form, whole=whole).table(parts)


@dataclass(frozen=True, slots=True)
class Form:
    """How a trainer gets rows.

    Attributes:
        text: writes prompts as text; None where the trainer's chat template makes it of turns.
        keeps_text: prompts that are texts already stay so.
        template: the setting of that name.
        tokenizer: of the model, or None where it is not known yet.
    """

    text: Template | None
    keeps_text: bool
    template: str
    tokenizer: Any

    @classmethod
    def of(cls, tokenizer: Any, template: str) -> Form:
        """Return the form under a template.

        Args:
            tokenizer: of the model; its chat template decides between turns and text.
            template: the setting of that name.

        Raises:
            DataError: the template is one that the trainer does not apply.
        """
        own_template = bool(getattr(tokenizer, "chat_template", None))
        # A .jinja file is the trainer's chat_template_path too.
        by_trainer = template == "chat" or template.endswith((".jinja", ".j2")) or (template == "auto" and own_template)
        if not by_trainer and template not in ("auto", *ALPACA, "raw"):
            raise DataError(
                f"template is {template!r}: TRL would render the rows with another one; use auto, chat, "
                f"{', '.join(ALPACA)} or raw, or set chat_template_path for the trainer and leave template out"
            )
        text = None if by_trainer else make_template(template, tokenizer)
        return cls(text, by_trainer and template == "auto", template, tokenizer)

    def parts(self, row: Row) -> Parts:
        """Return what the columns of a row are made of: `prompt` as text or turns, and `completion` likewise."""
        turns = [*(row.messages if row.messages is not None else ({"role": "user", "content": row.text},)), row.answer]
        start = row.completion_start if row.messages is not None else 1
        pair: Parts
        if self.text is not None:
            pair = {"prompt": self.text(row).text, "completion": row.reference}
        elif self.keeps_text and row.text is not None:
            pair = {"prompt": row.text, "completion": row.reference}
        else:
            pair = {"prompt": turns[:start], "completion": turns[start:]}
        # Tools as JSON: a column of tables would give every tool the arguments of all others.
        tools = json.dumps(list(row.tools)) if row.tools else None
        return {"id": row.id, **pair, "tools": tools, "chat_template_kwargs": row.chat_template_kwargs}

    def continues(self, rows: Sequence[Row]) -> list[bool]:
        """Return for each row whether its prompt, token by token, is the beginning of what is trained.

        Raises:
            DataError: the template cannot show a row with its answer.
        """
        if not rows or self.tokenizer is None:
            return [True] * len(rows)
        prompt, trained = make_template(self.template, self.tokenizer), make_trained(self.template, self.tokenizer)
        texts: list[str] = []
        for row in rows:
            try:
                texts += prompt(row).text, trained(row)
            except UnusableRowError as err:
                raise DataError(f"{row.where}: it cannot be trained on: {err.detail}") from None
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [whole[: len(start)] == start for start, whole in zip(ids[::2], ids[1::2], strict=True)]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table, which are the same for all its rows.

    Attributes:
        whole: conversations with all their turns, as `messages`; else `prompt` and `completion`.
        texts: prompts and completions are texts; else turns.
        plain: every turn has a role and a content, and nothing else.
        tools: there is a column of tools, as JSON text.
        kwargs: there is a column of keywords for the chat template.
    """

    whole: bool
    texts: bool
    plain: bool
    tools: bool
    kwargs: bool

    def schema(self) -> pa.Schema:
        """Return the types. What is nested is JSON: a struct would give every row the keys of all others, as nulls."""
        turn = pa.struct([("role", pa.string()), ("content", pa.string())]) if self.plain else pa.json_()
        of_row = pa.string() if self.texts else pa.list_(turn)
        names = ["messages"] if self.whole else ["prompt", "completion"]
        fields = [("id", pa.string()), *((name, of_row) for name in names)]
        fields += [("tools", pa.string())] if self.tools else []
        return pa.schema(fields + ([("chat_template_kwargs", pa.json_())] if self.kwargs else []))

    def table(self, rows: Iterable[Parts]) -> pa.Table:
        """Return rows as a table of these columns."""
        schema = self.schema()
        stored = pa.schema([(name, _storage(type)) for name, type in zip(schema.names, schema.types, strict=True)])
        return pa.Table.from_pylist([self._row(parts) for parts in rows], stored).cast(schema)

    def _row(self, parts: Parts) -> dict[str, Any]:
        row = {**parts, "chat_template_kwargs": json.dumps(parts["chat_template_kwargs"])}
        for name in () if self.texts else ("prompt", "completion"):
            row[name] = row[name] if self.plain else [json.dumps(turn, ensure_ascii=False) for turn in row[name]]
        if self.whole:
            row["messages"] = row["prompt"] + row["completion"]
        return row


def _storage(type: pa.DataType) -> pa.DataType:
    if pa.types.is_list(type):
        return pa.list_(_storage(type.value_type))
    return pa.string() if type == pa.json_() else type


@dataclass(slots=True)
class Seen:
    """What the rows so far have in common: it decides which columns a trainer gets."""

    rows: int = 0
    conversations: int = 0
    texts: int = 0  # prompts that are texts already
    first_text: str = ""  # where the first of them is
    plain: bool = True
    has_tools: bool = False
    has_kwargs: bool = False  # keywords for the chat template
    unanswered: list[str] = field(default_factory=list)  # where the rows without an answer are
    broken: list[str] = field(default_factory=list)  # where the rows are whose prompt is trained as another one

    def add(self, chosen: Sequence[Parsed], form: Form, *, compare: bool = True) -> list[Parts]:
        """Take rows, and return the parts of those that have an answer; `compare` prompts with what is trained."""
        found = []
        self.unanswered += [row.where for row, _ in chosen if row.answer is None]
        answered = [(row, layout) for row, layout in chosen if row.answer is not None]
        if compare:
            continued = form.continues([row for row, _ in answered])
            self.broken += [row.where for (row, _), fits in zip(answered, continued, strict=True) if not fits]
        for row, layout in answered:
            self.rows += 1
            self.conversations += layout in ("messages", "sharegpt")
            if row.text is not None:
                self.texts += 1
                self.first_text = self.first_text or row.where
            parts = form.parts(row)
            found.append(parts)
            turns = () if isinstance(parts["prompt"], str) else (*parts["prompt"], *parts["completion"])
            self.plain &= all(turn.keys() == {"role", "content"} for turn in turns)
            self.has_tools |= bool(row.tools)
            self.has_kwargs |= bool(row.chat_template_kwargs)
        return found

    def columns(self, form: Form, *, whole: bool = True) -> Columns:
        """Return a trainer's columns, conversations whole if `whole`, after warnings about rows that are not as asked.

        Raises:
            DataError: no row has an answer, or text prompts and turns are mixed.
        """
        if not self.rows:
            first = self.unanswered[0] if self.unanswered else "the choice"
            raise DataError(f"{first}: the row has no answer to train on, nor has any other of the chosen ones")
        if form.keeps_text and 0 < self.texts < self.rows:
            raise DataError(
                f"{self.first_text}: `prompt` is text, other rows hold turns, and the two are rendered differently: "
                "write the prompts as lists of turns, or train on them separately"
            )
        if self.unanswered:
            logger.warning(
                "%d of the chosen rows have no answer to train on, so they are not in the training table (first: %s)",
                len(self.unanswered),
                self.unanswered[0],
            )
        if self.broken:
            logger.warning(
                "%d of %d chosen rows are trained on another prompt than was sampled from: once the answer follows, it "
                "is rendered or tokenised otherwise (first: %s)",
                len(self.broken),
                self.rows,
                self.broken[0],
            )
        texts = form.text is not None or (form.keeps_text and self.texts > 0)
        stays_whole = whole and not texts and self.conversations == self.rows
        return Columns(stays_whole, texts, self.plain, self.has_tools, self.has_kwargs)
