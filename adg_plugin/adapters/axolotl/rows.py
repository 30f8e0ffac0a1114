"""Axolotl's tokenised rows -> staged prompts: where the answer begins, the instruction's own tokens, the raw row."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from adg_plugin.adapters.axolotl.raw_rows import columns_of, read_raw
from adg_plugin.data.cells import Reason, UnusableRowError
from adg_plugin.data.filters import ReferenceResponses, RowFilters
from adg_plugin.data.prompts import PromptLimit, PromptRenderer, Rendered, refuse_unknown
from adg_plugin.data.rows import Rejection, Row, row_json
from adg_plugin.errors import ConfigError
from adg_plugin.store import Rejection as StoredRejection
from adg_plugin.store import StagedRow, keys
from adg_plugin.store.records import Prompt

Tokens = npt.NDArray[np.int32]
Staged = StagedRow | StoredRejection
Shown = Rendered | Rejection | None  # None where this package has no template for the row

_MASKED = -100
_END_WITHIN = 3  # Axolotl unmasks an end token that stands up to so many tokens behind its turn
_BATCH_ROWS = 256
_NO_ANSWER = "no_trained_answer"


@dataclass(frozen=True, slots=True)
class Training:
    """What the prompts of a pool depend on, apart from its rows."""

    limit: PromptLimit
    recipe: bytes  # digest of what else produces the answers
    reference_responses: ReferenceResponses  # their tokens, where agreement with them is asked for
    tokenizer: Any  # the one that training uses
    end_tokens: frozenset[int]  # ids that end a turn
    sequence_len: int  # rows are known by so many tokens, as Axolotl may cut the rest
    template_kwargs: Mapping[str, Any]
    other_tokens: PromptRenderer | None = None  # for a backbone that reads other tokens than those of training


def row_digests(dataset: Any, sequence_len: int) -> list[bytes]:
    """Return what tells each row from all others: 16 bytes of its first `sequence_len` tokens."""
    return [_digest(tokens, sequence_len) for tokens, _ in _columns(dataset)]


def answer_start(labels: Tokens, end_tokens: frozenset[int]) -> int | None:
    """Return where the last answer begins, the start of the last run of trained tokens; None where none is trained.

    A run of nothing but end tokens close behind another one belongs to it: templates may set white space between.

    Args:
        labels: (L,) tokens, -100 where training does not look.
    """
    trained = np.flatnonzero(labels != _MASKED)
    if not len(trained):
        return None
    runs = np.split(trained, np.flatnonzero(np.diff(trained) > 1) + 1)
    while len(runs) > 1:
        gap = runs[-1][0] - runs[-2][-1] - 1
        if gap > _END_WITHIN or not end_tokens.issuperset(labels[runs[-1]].tolist()):
            break
        runs.pop()
    return int(runs[-1][0])


def frame(prompts: Iterable[Tokens]) -> tuple[int, int]:
    """Return how many tokens all prompts share at their beginnings and at their ends: the template's own."""
    head: Tokens | None = None
    tail = np.empty(0, np.int32)
    for prompt in prompts:
        if head is None:
            head, tail = prompt, prompt
            continue
        head = head[: _agreeing(head, prompt)]
        tail = tail[len(tail) - _agreeing(tail[::-1], prompt[::-1]) :]
    return (0 if head is None else len(head)), len(tail)


def stage(
    sources: Iterable[Any],
    wanted: Container[bytes],
    training: Training,
    ids: dict[bytes, str],
    filters: RowFilters | None = None,
) -> Iterator[Staged]:
    """Yield each wanted row once, as a prompt or with the reason why it is none, in the order of the sources.

    Args:
        ids: gets the id of each row by its digest. A row whose own id is taken by another one is known by a hash.
        filters: new ones, or None where none is on; with any that is on, a row of unknown text is a ConfigError.
    """
    taken: set[str] = set()
    for source in sources:
        reader = _Reader(source, training, filters)
        rows = (row for row in reader.rows() if row.digest in wanted)
        while batch := list(islice(rows, _BATCH_ROWS)):
            new: dict[bytes, _TokenRow] = {}
            for row in batch:
                if row.digest not in ids:
                    new.setdefault(row.digest, row)
            for digest, row in new.items():
                ids[digest] = row.id if row.id not in taken else f"t{digest.hex()}"
                taken.add(ids[digest])
            yield from reader.staged([replace(row, id=ids[digest]) for digest, row in new.items()])


@dataclass(frozen=True, slots=True)
class _TokenRow:
    id: str
    digest: bytes
    prompt: Tokens | None  # None where no token is trained on
    answer: Tokens  # the trained tokens behind it
    raw: Row | Rejection | None  # None where it is of a layout of its own
    where: str

    def rejected(self, reason: str, detail: str) -> StoredRejection:
        return StoredRejection(self.id, str(reason), detail, self.where)


class _Reader:
    def __init__(self, source: Any, training: Training, filters: RowFilters | None) -> None:
        self._source = source
        self._training = training
        is_on = filters is not None and (filters.settings or training.reference_responses.tokens)
        self._filters = filters if is_on else None
        self._spec = columns_of(source)

    def rows(self) -> Iterator[_TokenRow]:
        """Yield the rows in order."""
        source, training = self._source, self._training
        # A strategy that drops rows leaves no way to tell which raw row a tokenised one was.
        raw = source.raw if len(source.raw) == len(source.tokenised) else repeat(None)
        for number, (data, (tokens, labels)) in enumerate(zip(raw, _columns(source.tokenised), strict=False), 1):
            where = f"{source.path}:{number}"
            start = answer_start(labels[: training.sequence_len], training.end_tokens)
            prompt = None if start is None else tokens[:start]
            answer = tokens[start:][labels[start:] != _MASKED]
            row = None if data is None else read_raw(data, where, self._spec, training.template_kwargs)
            digest = _digest(tokens, training.sequence_len)
            yield _TokenRow(f"t{digest.hex()}" if row is None else row.id, digest, prompt, answer, row, where)

    def staged(self, rows: Sequence[_TokenRow]) -> Iterator[Staged]:
        """Yield the rows as prompts or with the reason why they are none."""
        parsed = [row.raw for row in rows if isinstance(row.raw, Row)]
        prompt_of = self._as_trained if self._training.other_tokens is None else self._in_other_tokens
        rendered_of = self._renderer.render_many(parsed) if self._renderer else iter(repeat((None, None)))
        for row in rows:
            rendered = next(rendered_of)[1] if isinstance(row.raw, Row) else None
            if isinstance(row.raw, Rejection):
                yield row.rejected(row.raw.reason, row.raw.detail)
                continue
            staged = prompt_of(row, rendered)
            if self._filters is not None and isinstance(staged, StagedRow):
                if row.raw is None:  # its tokens hold the template, too, and earlier turns
                    raise ConfigError([self._filters.refusal(row.where)])
                if found := self._filters.rejection(replace(row.raw, id=row.id)):
                    staged = row.rejected(found.reason, found.detail)
            yield staged

    def _in_other_tokens(self, row: _TokenRow, rendered: Shown) -> Staged:
        if rendered is None:
            detail = "the backbone reads other tokens than training writes, and the row is of no known layout"
            return row.rejected(Reason.TEMPLATE, detail)
        if isinstance(rendered, Rejection):
            return row.rejected(rendered.reason, rendered.detail)
        return self._prompt(row, rendered.token_ids, rendered.span, rendered.text)

    def _as_trained(self, row: _TokenRow, rendered: Shown) -> Staged:
        prompt, limit = row.prompt, self._training.limit
        if prompt is None or not len(prompt):
            return row.rejected(_NO_ANSWER, f"{'nothing' if prompt is None else 'all'} of the row is trained on")
        if len(prompt) > limit.tokens:
            return row.rejected(Reason.TOO_LONG, limit.refusal(len(prompt)))
        try:
            for tokens, what in ((prompt, "the prompt"), (row.answer, "the answer")):
                refuse_unknown(self._training.tokenizer, tokens, limit.vocabulary, what)
        except UnusableRowError as err:
            return row.rejected(err.reason, err.detail)
        if isinstance(rendered, Rendered) and _agreeing(rendered.token_ids, prompt) >= rendered.span[1]:
            span = rendered.span
        else:
            head, tail = self._frame
            span = max(head, 1), len(prompt) - tail
        if span[0] >= span[1]:
            return row.rejected(Reason.NO_SPAN, "no token of the instruction's own after the first position")
        return self._prompt(row, prompt, span, self._training.tokenizer.decode(prompt))

    def _prompt(self, row: _TokenRow, tokens: Tokens, span: tuple[int, int], text: str) -> StagedRow:
        raw, tokenizer = row.raw, self._training.tokenizer
        if isinstance(raw, Row):
            instruction = f"{raw.instruction}\n\n{raw.input}" if raw.input else raw.instruction
            reference, data = raw.reference, raw.data
        else:
            instruction = tokenizer.decode(tokens[span[0] : span[1]])
            reference, data = tokenizer.decode(row.answer, skip_special_tokens=True), {"prompt": text}
        own = self._training.reference_responses.ids(reference)
        key = keys.row_key(self._training.recipe, tokens, span, own)
        return StagedRow(
            Prompt(row.id, tokens, span, key, instruction, own), text, reference, row_json(data), row.where
        )

    @cached_property
    def _renderer(self) -> PromptRenderer | None:
        """The renderer that should give what training does; where it does not, the frame of the prompts is used."""
        source, tokenizer = self._source, self._training.tokenizer
        if self._training.other_tokens is not None:
            return self._training.other_tokens
        if source.chat_template is not None:
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = source.chat_template
            return PromptRenderer(tokenizer, "chat", None)
        template = source.formats or ("alpaca" if source.kind.startswith("alpaca") else None)
        return None if template is None else PromptRenderer(tokenizer, template, None)

    @cached_property
    def _frame(self) -> tuple[int, int]:
        return frame(row.prompt for row in self.rows() if row.prompt is not None)


def _digest(tokens: Tokens, sequence_len: int) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(tokens[:sequence_len], "<i4").tobytes(), digest_size=16).digest()


def _columns(dataset: Any) -> Iterator[tuple[Tokens, Tokens]]:
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        columns = [table[name].combine_chunks() for name in ("input_ids", "labels")]
        parts = [(c.offsets.to_numpy(), c.values.to_numpy(zero_copy_only=False).astype(np.int32)) for c in columns]
        for row in range(table.num_rows):
            tokens, labels = (values[offsets[row] : offsets[row + 1]] for offsets, values in parts)
            yield tokens, labels


def _agreeing(one: Tokens, other: Tokens) -> int:
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length
