"""Fills a run folder with what a model answers when asked to tag rows without labels, which MIG then chooses by."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.prompts import PromptLimit, PromptRenderer, Rendered
from adg_plugin.data.rows import Row
from adg_plugin.engines.models.side_models import other_model
from adg_plugin.errors import ModelError
from adg_plugin.selectors.measure import Advice, add_measures
from adg_plugin.selectors.mig.columns import column_of, has_labels, listed_labels
from adg_plugin.selectors.mig.tag_prompt import QUESTION_VERSION, conversation, read_tags
from adg_plugin.store import RunFolder, RunReader, keys
from adg_plugin.store.measures import REPLIES, Measures, read_measures
from adg_plugin.store.staging import row_digest

if TYPE_CHECKING:
    from adg_plugin.engines.judges.greedy import Question, Reply
    from adg_plugin.engines.models.loading import Source

logger = logging.getLogger(__name__)

MAX_PROMPT_TOKENS = 1024  # of the question, its examples and the row's words
MAX_NEW_TOKENS = 64  # of an answer: five tags take about 30
ADVICE = Advice(memory="free the device or name a smaller tagger", numbers="check its weights, or name another tagger")

_MEASURE = "tags"
_LEAST_TOKENS = 64  # that a question must leave for a row's own words
_VERSION = 1  # raise it when the same model and question come to give other answers
_BATCH_ROWS = 256  # rendered together


@dataclass(frozen=True, slots=True)
class Words:
    """A row's id and its own words."""

    id: str
    instruction: str


@dataclass(frozen=True, slots=True)
class Tags:
    """What the tagger made of N rows.

    Attributes:
        of: the tags of each row; none where there are none.
        unread: answers in which there are no tags that can be read.
        unasked: rows without an answer, for want of memory or of a place in the model's template.
    """

    of: list[tuple[str, ...]]
    unread: int
    unasked: int


def tag(run: RunFolder, config: ADGConfig, *, show: bool = True) -> dict[str, Any]:
    """Ask the tagger about the prompts of a run folder that have no labels and no answer yet; return what it took.

    It answers greedily, after its own chat template. Each batch is on the disk before the next begins.

    Args:
        run: the run folder, with a staged pool.
        config: names the `tagger`, the column of labels, the device.
        show: report progress on stderr.

    Returns:
        As `adg_plugin.selectors.measure.add_measures`; `tokens` are those generated.

    Raises:
        ModelError: the tagger cannot be used.
        OutOfMemoryError, StoreError: as `adg_plugin.selectors.measure.add_measures`; what is answered is kept.
    """
    if not listed_labels(run, config.field_labels)[1]:
        return {"rows": 0}
    asked = Tagger.configured(config)
    with Measures.open(run, _MEASURE, REPLIES) as measures:
        for sentence in measures.damage:
            logger.warning("%s", sentence)
        total = pending = 0
        for row in _bare(run, config.field_labels):
            total += 1
            pending += asked.digest(row) not in measures.completed
        rows = (row for row in _bare(run, config.field_labels) if asked.digest(row) not in measures.completed)

        def replies() -> Iterator[Reply]:
            for batch in asked.replies(rows):
                yield from batch
                measures.flush()

        return add_measures(measures, replies(), ADVICE, total=total, pending=pending, verb="tagging", show=show)


def tags_of(run: RunReader, config: ADGConfig, rows: Sequence[Words]) -> Tags:
    """Return the tags in the stored answers of the tagger that the config names; see `tag`.

    Raises:
        ModelError: the tagger cannot be found.
        StoreError: a file is damaged.
    """
    asked = Tagger.configured(config)
    table = read_measures(run, _MEASURE, [asked.digest(row) for row in rows], REPLIES)
    answers = table["answer"].to_pylist()
    of = [() if answer is None else read_tags(answer) for answer in answers]
    unasked = sum(answer is None for answer in answers)
    return Tags(of, sum(not tags for tags in of) - unasked, unasked)


@dataclass(frozen=True, slots=True)
class Tagger:
    """A model that can be asked for tags, loaded when it is."""

    source: Source
    renderer: PromptRenderer
    recipe: bytes  # of all that an answer depends on beside the row's own words

    @classmethod
    def configured(cls, config: ADGConfig) -> Tagger:
        """Return the tagger that the config names, not loaded yet.

        Raises:
            ModelError: it cannot be found, has no chat template, or too few positions.
        """
        source = other_model(config, "tagger")
        if not getattr(source.tokenizer, "chat_template", None):
            raise ModelError(f"tagger is {config.tagger!r}: its tokenizer has no chat template; name a chat model")
        empty = PromptRenderer(source.tokenizer, "chat", None).render(_row(Words("", "?")))
        if not isinstance(empty, Rendered):
            raise ModelError(f"tagger is {config.tagger!r}: it cannot be asked ({empty.detail}); name another model")
        room = MAX_PROMPT_TOKENS if source.positions is None else source.positions - MAX_NEW_TOKENS
        limit = PromptLimit(min(MAX_PROMPT_TOKENS, room), f"tagger is {config.tagger!r}", "name another model")
        if limit.tokens < len(empty.token_ids) + _LEAST_TOKENS:  # else the question would be cut, not the row's words
            raise ModelError(
                f"tagger is {config.tagger!r}: a question may take {limit.tokens} tokens, and has "
                f"{len(empty.token_ids)} without the row's own words; name a model with more positions or a larger "
                "vocabulary"
            )
        renderer = PromptRenderer(source.tokenizer, "chat", limit, truncate=True)
        recipe = {
            "model": source.identity,
            "question": empty.token_ids.tolist(),  # and with it the template and the vocabulary
            "tokens": [limit.tokens, MAX_NEW_TOKENS],
            "version": [QUESTION_VERSION, _VERSION],
        }
        return cls(source, renderer, keys.digest(recipe))

    def key(self, row: Words) -> bytes:
        """Return 16 bytes that stand for all that produces a row's answer."""
        return hashlib.blake2b(self.recipe + row.instruction.encode(errors="surrogatepass"), digest_size=16).digest()

    def digest(self, row: Words) -> bytes:
        """Return the `row_digest` of a row's answer."""
        return row_digest(row.id, self.key(row))

    def replies(self, rows: Iterable[Words]) -> Iterator[list[Reply]]:
        """Yield the answers, a batch at a time; the model is loaded for them."""
        from adg_plugin.engines.judges.greedy import GreedyAnswers

        backbone = self.source.load()
        engine = GreedyAnswers(backbone.model, backbone.tokenizer, backbone.eos_ids, max_new_tokens=MAX_NEW_TOKENS)
        refused: list[Reply] = []
        cut: list[str] = []
        for replies in engine.run(self._questions(rows, refused, cut)):
            yield [*refused, *replies]
            refused.clear()
        if refused:
            yield refused
        if cut:
            logger.warning("the end of %d instructions was not shown to the tagger: they are too long for it", len(cut))

    def _questions(self, rows: Iterable[Words], refused: list[Reply], cut: list[str]) -> Iterator[Question]:
        """Yield what is asked of each row that the template can show, add the others to `refused`, and ids to `cut`."""
        from adg_plugin.engines.judges.greedy import Question, Reply

        remaining = iter(rows)
        while batch := list(islice(remaining, _BATCH_ROWS)):
            for row, shown in zip(batch, self.renderer.render_many(map(_row, batch)), strict=True):
                if isinstance(shown, Rendered):
                    cut += [row.id] if shown.truncated else []
                    yield Question(row.id, self.key(row), shown.token_ids)
                else:
                    refused.append(Reply(row.id, self.key(row), None, 0, shown.reason.value))


def _bare(run: RunReader, column: str) -> Iterator[Words]:
    """Yield the staged prompts without labels of their own, in the pool's order."""
    for table in run.staged_columns(["id", "instruction", "data"]):
        for row in table.to_pylist():
            if not has_labels(column_of(row["data"], column)):
                yield Words(row["id"], row["instruction"])


def _row(words: Words) -> Row:
    turns = conversation(words.instruction)
    # Models that can think first are asked not to: the answer is a list, and its tokens are few.
    return Row(words.id, turns, None, turns[-1]["content"], "", None, {"enable_thinking": False}, "", {}, "", 0)
