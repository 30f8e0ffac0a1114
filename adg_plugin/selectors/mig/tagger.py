"""Fills a run folder with what a model answers when asked to tag rows without labels, which MIG then chooses by."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.prompts import PromptLimit, PromptRenderer
from adg_plugin.data.rows import Row
from adg_plugin.engines.models.side_models import other_model
from adg_plugin.errors import ModelError
from adg_plugin.selectors.measure import Advice, Measure, fill_measure, stored_measure
from adg_plugin.selectors.mig.columns import column_of, has_labels, listed_labels
from adg_plugin.selectors.mig.prompted import PromptedJudge, bare_question
from adg_plugin.selectors.mig.tag_prompt import QUESTION_VERSION, conversation, read_tags
from adg_plugin.store import RunFolder, RunReader, keys
from adg_plugin.store.measures import measure_schema

if TYPE_CHECKING:
    from adg_plugin.engines.judges.greedy import GreedyAnswers

logger = logging.getLogger(__name__)

MAX_PROMPT_TOKENS = 1024  # of the question, its examples and the row's words
MAX_NEW_TOKENS = 64  # of an answer: five tags take about 30
ADVICE = Advice(memory="free the device or name a smaller tagger", numbers="check its weights, or name another tagger")

_MEASURE = Measure("tags", measure_schema(("answer", pa.string())), ADVICE, verb="tagging", each_batch=True)
_VERSION = 1  # raise it when the same model and question come to give other answers


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

    Returns:
        As `adg_plugin.selectors.measure.fill_measure`; `tokens` are those generated.

    Raises:
        ModelError: the tagger cannot be used.
    """
    if not listed_labels(run, config.field_labels)[1]:
        return {"rows": 0}
    tagger = Tagger.configured(config)
    stats = fill_measure(run, _MEASURE, tagger, show=show)
    if tagger.cut:
        logger.warning("the end of %d instructions was not shown to the tagger: they are too long for it", tagger.cut)
    return stats


def tags_of(run: RunReader, config: ADGConfig, rows: Sequence[Words]) -> Tags:
    """Return the tags in the configured tagger's stored answers; a ModelError if missing, a StoreError if damaged."""
    answers = stored_measure(run, _MEASURE, Tagger.configured(config), rows)["answer"].to_pylist()
    of = [() if answer is None else read_tags(answer) for answer in answers]
    unasked = sum(answer is None for answer in answers)
    return Tags(of, sum(not tags for tags in of) - unasked, unasked)


class Tagger(PromptedJudge[Words]):
    """A model that can be asked for tags."""

    @classmethod
    def configured(cls, config: ADGConfig) -> Tagger:
        """Return the tagger of the config, not loaded; a ModelError if missing, without chat template, or too short."""
        named = f"tagger is {config.tagger!r}"
        source = other_model(config, "tagger")
        if not getattr(source.tokenizer, "chat_template", None):
            raise ModelError(f"tagger is {config.tagger!r}: its tokenizer has no chat template; name a chat model")
        room = MAX_PROMPT_TOKENS if source.positions is None else source.positions - MAX_NEW_TOKENS
        limit = PromptLimit(min(MAX_PROMPT_TOKENS, room), named, "name another model")
        empty = bare_question(named, source.tokenizer, "chat", _row(Words("", "?")), limit.tokens)
        renderer = PromptRenderer(source.tokenizer, "chat", limit, truncate=True)
        recipe = {
            "model": source.identity,
            "question": empty.token_ids.tolist(),  # and with it the template and the vocabulary
            "tokens": [limit.tokens, MAX_NEW_TOKENS],
            "version": [QUESTION_VERSION, _VERSION],
        }
        return cls(source, renderer, _row, keys.digest(recipe), config.field_labels)

    def rows(self, run: RunReader) -> Iterator[Words]:
        """Yield the staged prompts without labels of their own, in the pool's order."""
        for table in run.staged_columns(["id", "instruction", "data"]):
            for row in table.to_pylist():
                if not has_labels(column_of(row["data"], self.column)):
                    yield Words(row["id"], row["instruction"])

    def key(self, row: Words) -> bytes:
        """Return 16 bytes that stand for all that produces a row's answer."""
        return hashlib.blake2b(self.recipe + row.instruction.encode(errors="surrogatepass"), digest_size=16).digest()

    def load(self) -> GreedyAnswers:
        """Return the model, in memory."""
        from adg_plugin.engines.judges.greedy import GreedyAnswers

        backbone = self.source.load()
        return GreedyAnswers(backbone.model, backbone.tokenizer, backbone.eos_ids, max_new_tokens=MAX_NEW_TOKENS)


def _row(words: Words) -> Row:
    turns = conversation(words.instruction)
    # Models that can think first are asked not to: the answer is a list, and its tokens are few.
    return Row(words.id, turns, None, turns[-1]["content"], "", None, {"enable_thinking": False}, "", {}, "", 0)
