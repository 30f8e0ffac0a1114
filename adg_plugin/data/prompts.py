"""Row -> prompt: token ids, and which of them are the instruction's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.cells import Reason, UnusableRowError
from adg_plugin.data.rows import Rejection, Row
from adg_plugin.data.templates import PromptText, Template, make_template
from adg_plugin.errors import ConfigError

_BATCH_ROWS = 256

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row's prompt. `text` is what was tokenised: leading tokens that the tokenizer adds (BOS) are not in it."""

    id: str
    token_ids: npt.NDArray[np.int32]  # (L,)
    span: tuple[int, int]  # [start, end) of the instruction's own tokens; start >= 1
    text: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class PromptLimit:
    """What a model can be asked.

    Attributes:
        tokens: of the longest prompt, template included; `reason` says why no more, `fix` what to do.
        vocabulary: how many tokens the model has embeddings for; None where that is not known.
    """

    tokens: int
    reason: str
    fix: str
    vocabulary: int | None = None

    @classmethod
    def of(cls, config: ADGConfig, positions: int | None = None, vocabulary: int | None = None) -> PromptLimit:
        """Return the lower of what the configuration allows and what the model can take with the longest answer.

        Args:
            positions: tokens that the model can tell apart by position, or None where it sets no limit.
            vocabulary: how many tokens the model has embeddings for.

        Raises:
            ConfigError: answers alone may exceed the model's positions.
        """
        asked, answer = config.max_prompt_tokens, config.max_new_tokens
        if positions is None or asked + answer <= positions:
            return cls(asked, f"max_prompt_tokens is {asked}", "raise it", vocabulary)
        if answer >= positions:
            raise ConfigError([f"max_new_tokens is {answer}: the model has {positions} positions, use fewer than that"])
        reason = f"the model has {positions} positions, of which an answer may take {answer}"
        return cls(positions - answer, reason, "lower max_new_tokens", vocabulary)

    def refusal(self, length: int) -> str:
        """Return the sentence for a prompt of `length` tokens."""
        return f"{length} tokens, {self.reason}: {self.fix}"


class PromptRenderer:
    """Renders and tokenises rows the way training does."""

    def __init__(
        self, tokenizer: Any, template: str | Template, limit: PromptLimit | None, truncate: bool = False
    ) -> None:
        """Choose the template.

        Args:
            tokenizer: a transformers tokenizer, fast or slow.
            template: as the setting of that name, or a template itself.
            limit: the longest prompt, or None for no limit.
            truncate: cut the end of the instruction of longer prompts; else they are rejected.

        Raises:
            ConfigError: no such template.
            ModelError: `chat`, and the tokenizer has no chat template.
        """
        self._tokenizer = tokenizer
        self._template = make_template(template, tokenizer) if isinstance(template, str) else template
        self._limit = limit or PromptLimit(sys.maxsize, "", "")
        self._truncate = truncate
        self._leading = _leading_tokens(tokenizer)
        self._vocabulary = None if limit is None else limit.vocabulary
        self._has_unknown = self._vocabulary is not None and len(tokenizer) > self._vocabulary

    def render(self, row: Row) -> Rendered | Rejection:
        """Return the prompt of one row, or why it has none."""
        ((_, prompt),) = self.render_many([row])
        return prompt

    def render_many(
        self, items: Iterable[Item], row_of: Callable[[Any], Row | Rejection] = lambda row: row
    ) -> Iterator[tuple[Item, Rendered | Rejection]]:
        """Yield each item with its prompt, or why it has none, in order; the tokenizer gets many rows at a time.

        Args:
            items: rows, or what travels with a row; one that is rejected already stays so.
            row_of: gives an item's row.
        """
        remaining = iter(items)
        while batch := list(islice(remaining, _BATCH_ROWS)):
            yield from zip(batch, self._render_batch(list(map(row_of, batch))), strict=True)

    def _render_batch(self, rows: Sequence[Row | Rejection]) -> Iterator[Rendered | Rejection]:
        shown = [row if isinstance(row, Rejection) else self._text(row) for row in rows]
        texts = [prompt.text for prompt in shown if isinstance(prompt, PromptText)]
        tokens = iter(_Tokens.of(self._tokenizer, texts) if texts else ())
        for row, prompt in zip(rows, shown, strict=True):
            if isinstance(prompt, Rejection):
                yield prompt
                continue
            try:
                yield self._rendered(row.id, prompt, next(tokens))
            except UnusableRowError as err:
                yield Rejection.of(row, err.reason, err.detail)

    def _text(self, row: Row) -> PromptText | Rejection:
        try:
            prompt = self._template(row)
            prompt.text.encode()
            if self._has_unknown and row.reference:
                ids = self._tokenizer(row.reference, add_special_tokens=False, verbose=False)["input_ids"]
                refuse_unknown(self._tokenizer, ids, self._vocabulary, "the reference response")
        except UnusableRowError as err:
            return Rejection.of(row, err.reason, err.detail)
        except UnicodeEncodeError as err:
            half = f"{err.object[err.start]!r} at character {err.start} of the prompt"
            return Rejection.of(row, Reason.BAD_TEXT, f"{half} is half a character: repair the text")
        return prompt

    def _rendered(self, row_id: str, prompt: PromptText, tokens: _Tokens) -> Rendered:
        leading = self._leading if prompt.special_tokens else []
        truncated = len(leading) + len(tokens.ids) > self._limit.tokens
        if truncated:
            prompt, tokens = self._cut(prompt, tokens, len(leading))
        start, end = tokens.span(prompt.start, prompt.end)
        start, end = max(start + len(leading), 1), end + len(leading)
        if start >= end:
            raise UnusableRowError(Reason.NO_SPAN, "no token of the instruction's own after the first position")
        ids = np.array([*leading, *tokens.ids], dtype=np.int32)
        if self._has_unknown:
            refuse_unknown(self._tokenizer, ids, self._vocabulary, "the prompt")
        return Rendered(row_id, ids, (start, end), prompt.text, truncated)

    def _cut(self, prompt: PromptText, tokens: _Tokens, leading: int) -> tuple[PromptText, _Tokens]:
        """Return the prompt with as much of its instruction as fits: the end goes, what comes after it stays."""
        limit = self._limit
        length, room = leading + len(tokens.ids), limit.tokens - leading
        if not self._truncate:
            raise UnusableRowError(Reason.TOO_LONG, f"{limit.refusal(length)}, or set truncate: true")
        while (excess := len(tokens.ids) - room) > 0:
            cut = prompt.start + len(prompt.text[prompt.start : tokens.cut_before(prompt, excess)].rstrip())
            if cut <= prompt.cut_limit:
                detail = f"{length} tokens, {limit.reason}, and the template alone leaves no room: {limit.fix}"
                raise UnusableRowError(Reason.TOO_LONG, detail)
            prompt = replace(prompt, text=prompt.text[:cut] + prompt.text[prompt.end :], end=cut)
            tokens = _Tokens.of(self._tokenizer, [prompt.text])[0]
        return prompt, tokens


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of one text, and how its characters map to them."""

    ids: list[int]
    text: str
    tokenizer: Any
    encoding: Any  # of a fast tokenizer; None for a slow one, which gives no offsets

    @classmethod
    def of(cls, tokenizer: Any, texts: list[str]) -> list[_Tokens]:
        batch = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        encodings = batch.encodings or [None] * len(texts)
        return [
            cls(ids, text, tokenizer, encoding)
            for ids, text, encoding in zip(batch["input_ids"], texts, encodings, strict=True)
        ]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the tokens `[first, last)` that hold any of the characters `[start, end)`."""
        if self.encoding is None:
            before, reaches = self._stable(start), self._stable(end)
            exact = len(self._ids_of(self.text[:end])) == reaches
            return before, reaches if exact else min(reaches + 1, len(self.ids))
        to_token = self.encoding.char_to_token
        first = next((t for c in range(start, end) if (t := to_token(c)) is not None), None)
        last = next((t for c in range(end - 1, start - 1, -1) if (t := to_token(c)) is not None), None)
        if first is None or last is None:
            return 0, 0
        while last + 1 < len(self.ids) and (chars := self.encoding.token_to_chars(last + 1)) and chars[0] < end:
            last += 1  # a character of several tokens: char_to_token gives the first
        return first, last + 1

    def cut_before(self, prompt: PromptText, excess: int) -> int:
        """Return the character before which to cut so that about `excess` of the instruction's tokens go."""
        first, last = self.span(prompt.start, prompt.end)
        kept = last - first - excess
        if kept <= 0:
            return prompt.start
        if self.encoding is None:
            return prompt.start + (prompt.end - prompt.start) * kept // (kept + excess)
        chars = self.encoding.token_to_chars(first + kept)
        return min(int(chars[0]), prompt.end - 1)

    def _stable(self, character: int) -> int:
        """Return how many tokens stay the same when the text ends before `character`."""
        ids = self._ids_of(self.text[:character])
        pairs = enumerate(zip(ids, self.ids, strict=False))
        return next((number for number, (one, other) in pairs if one != other), min(len(ids), len(self.ids)))

    def _ids_of(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def refuse_unknown(tokenizer: Any, ids: Sequence[int] | npt.NDArray[np.int32], known: int | None, what: str) -> None:
    """Validate that a model has embeddings for all tokens of a text.

    Args:
        known: how many tokens it has embeddings for, or None.
        what: the text, for the error.

    Raises:
        UnusableRowError: it has not; names the token.
    """
    highest = int(np.max(ids)) if len(ids) else 0
    if known is not None and highest >= known:
        detail = (
            f"{what} has {tokenizer.convert_ids_to_tokens(highest)!r}, token {highest}, and the model has embeddings "
            f"for {known} tokens: use its own tokenizer, or resize its embedding"
        )
        raise UnusableRowError(Reason.UNKNOWN_TOKEN, detail)


def _leading_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer puts before a plain text (BOS); what it puts after (EOS) ends an answer."""
    plain = list(tokenizer("text", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("text")["input_ids"])
    starts = [n for n in range(len(full) - len(plain) + 1) if full[n : n + len(plain)] == plain]
    return full[: starts[0]]
