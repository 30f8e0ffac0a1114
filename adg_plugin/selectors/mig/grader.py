"""Fills a run folder with the grades that a model gives to rows without a quality of their own, for MIG."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.layouts import Reason
from adg_plugin.data.prompts import PromptLimit, PromptRenderer
from adg_plugin.data.rows import Row
from adg_plugin.engines.models.side_models import other_model
from adg_plugin.errors import ModelError
from adg_plugin.selectors.measure import Advice, Measure, fill_measure, stored_measure, text_key
from adg_plugin.selectors.mig.columns import column_of, has_quality, lacks_quality
from adg_plugin.selectors.mig.grade_prompt import GRADES, QUESTION_VERSION, QualityTemplate
from adg_plugin.selectors.mig.prompted import PromptedJudge, bare_question
from adg_plugin.store import RunFolder, RunReader, keys
from adg_plugin.store.measures import measure_schema

if TYPE_CHECKING:
    from adg_plugin.engines.judges.grades import Grades

logger = logging.getLogger(__name__)

MAX_PROMPT_TOKENS = 2048  # of the question with the row's instruction and answer: the positions of DEITA's scorer
ADVICE = Advice(
    memory="free the device, or name a smaller quality_scorer",
    numbers="check the weights of quality_scorer, or name another one",
)

_MEASURE = Measure("quality", measure_schema(("score", pa.float64()), ("share", pa.float64())), ADVICE, verb="grading")
_VERSION = 1  # raise it when the same model and question come to give other grades


@dataclass(frozen=True, slots=True)
class Answered:
    """A row's id, its own words, and its reference response."""

    id: str
    instruction: str
    answer: str


@dataclass(frozen=True, slots=True)
class Rated:
    """What became of a row: a score from 1 to 6, or a reason."""

    score: float | None
    share: float | None  # of what the model expects next that is a grade at all
    reason: str | None


def rate(run: RunFolder, config: ADGConfig, *, show: bool = True) -> dict[str, Any]:
    """Ask the quality scorer about the prompts of a run folder without quality and grade, and return what it took.

    Rows without an answer in words are not asked about. Each part is on the disk before the next begins.

    Returns:
        As `adg_plugin.selectors.measure.fill_measure`.

    Raises:
        ModelError: the scorer cannot be used.
    """
    if not lacks_quality(run, config.field_quality):
        return {"rows": 0}
    rater = Rater.configured(config)
    stats = fill_measure(run, _MEASURE, rater, show=show)
    if rater.cut:
        logger.warning("the end of %d answers was not shown to the quality scorer: they are too long for it", rater.cut)
    return stats


def ratings_of(run: RunReader, config: ADGConfig, rows: Sequence[Answered]) -> list[Rated]:
    """Return the stored grades of the quality scorer that the config names, for each of the rows; see `rate`.

    Those of another model or of other texts do not count: such a row's reason is `not_measured`.

    Raises:
        ModelError: the scorer cannot be found, and there is a row that it is to grade.
        StoreError: a file is damaged.
    """
    found = dict.fromkeys(range(len(rows)), Rated(None, None, Reason.NO_ANSWER.value))
    if in_words := [number for number, row in enumerate(rows) if row.answer.strip()]:
        table = stored_measure(run, _MEASURE, Rater.configured(config), [rows[number] for number in in_words])
        columns = (table[name].to_pylist() for name in ("score", "share", "reason"))
        found |= {number: Rated(*values) for number, *values in zip(in_words, *columns, strict=True)}
    return list(found.values())


@dataclass(slots=True, kw_only=True)
class Rater(PromptedJudge[Answered]):
    """A model that can be asked for grades; `grade_ids` are the token of each."""

    grade_ids: tuple[int, ...]

    @classmethod
    def configured(cls, config: ADGConfig) -> Rater:
        """Return the quality scorer, not loaded; a ModelError if missing, too short, or a grade is not one token."""
        named = f"quality_scorer is {config.quality_scorer!r}"
        source = other_model(config, "quality_scorer")
        template = QualityTemplate(source.tokenizer)
        room = min(MAX_PROMPT_TOKENS, source.positions or MAX_PROMPT_TOKENS)
        empty = bare_question(named, source.tokenizer, template, _row(Answered("", "?", "?")), room)
        grade_ids = tuple(_next_token(source.tokenizer, empty.text, grade, named) for grade in GRADES)
        if len(set(grade_ids)) < len(GRADES) or source.tokenizer.unk_token_id in grade_ids:
            raise ModelError(
                f"{named}: its vocabulary does not tell the grades {', '.join(GRADES)} apart; name another"
            )
        limit = PromptLimit(room, named, "give the row a quality of its own (field_quality), or shorten it")
        recipe = {
            "model": source.identity,
            "question": empty.token_ids.tolist(),  # and with it the template and the vocabulary
            "grades": grade_ids,
            "tokens": room,
            "version": [QUESTION_VERSION, _VERSION],
        }
        renderer = PromptRenderer(source.tokenizer, template, limit, truncate=True)
        return cls(source, renderer, _row, keys.digest(recipe), config.field_quality, grade_ids=grade_ids)

    def rows(self, run: RunReader) -> Iterator[Answered]:
        """Yield the staged prompts that have an answer and no quality of their own, in the pool's order."""
        for table in run.staged_columns(["id", "instruction", "reference", "data"]):
            for row in table.to_pylist():
                if (row["reference"] or "").strip() and not has_quality(column_of(row["data"], self.column)):
                    yield Answered(row["id"], row["instruction"], row["reference"])

    def key(self, row: Answered) -> bytes:
        """Return 16 bytes that stand for all that produces a row's grade."""
        return text_key(self.recipe, row.instruction, row.answer)

    def load(self) -> Grades:
        """Return the model, in memory."""
        from adg_plugin.engines.judges.grades import Grades

        return Grades(self.source.load().model, self.grade_ids)


def _next_token(tokenizer: Any, prompt: str, grade: str, named: str) -> int:
    """Return a grade's token right after the prompt; a ModelError where it is several, or merges with the prompt."""
    before, after = (
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (prompt, prompt + grade)
    )
    if len(after) != len(before) + 1 or list(after[:-1]) != list(before):
        raise ModelError(f"{named}: after its prompt, {grade!r} is no token of its own; name another model")
    return int(after[-1])


def _row(of: Answered) -> Row:
    # Models that can think first are asked not to: the grade has to be the next token.
    settings = {"enable_thinking": False}
    return Row(
        of.id, ({"role": "user", "content": ""},), None, of.instruction, "", None, settings, of.answer, {}, "", 0
    )
