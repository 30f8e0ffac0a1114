"""Grades for rows without a quality: a prompt after which a grade from 1 to 6 is to come, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.cells import Reason
from adg_plugin.data.rows import Row
from adg_plugin.data.templates import ChatTemplate, PromptText, Template, framed
from adg_plugin.errors import ModelError
from adg_plugin.selectors.measure import Measure, stored_measure, text_key
from adg_plugin.selectors.mig.columns import has_quality
from adg_plugin.selectors.mig.prompted import PromptedJudge
from adg_plugin.store import RunReader
from adg_plugin.store.ledger import measure_schema

if TYPE_CHECKING:
    from adg_plugin.engines.judges.causal_lm import Grades

_GRADES = ("1", "2", "3", "4", "5", "6")
# Raise the first when the question changes, the other when the same model and question come to give other grades:
# grades for another one do not count.
_VERSIONS = [1, 1]

_QUESTION = (
    "Grade the response to the request below from 1 to 6: how correct, complete, clear and helpful is it? 6 is the "
    "best. Answer with the grade alone.\n\nRequest:\n"
)
_RESPONSE = "\n\nResponse:\n"
# What DEITA's quality scorers were trained on, to the space. Source: github.com/hkust-nlp/deita, and arXiv 2312.15685.
_DEITA = (
    "You are a helpful assistant. Please identify the quality score of the Response corresponding to the Question. \n "
    "#Question#:\n",
    "\n#Response#:\n",
    " \n##Quality: ",
)


class Rated(NamedTuple):
    """What became of a row: a score from 1 to 6, or a reason."""

    score: float | None
    share: float | None  # of what the model expects next that is a grade at all
    reason: str | None


class Rater(PromptedJudge):
    """A model that can be asked for grades, each of which has to be a token; rows without an answer are left out."""

    setting, column = "quality_scorer", "field_quality"
    has_own: ClassVar[Callable[[Any], bool]] = staticmethod(has_quality)
    with_answer = True
    measure: ClassVar[Measure] = Measure(
        "quality",
        measure_schema(("score", pa.float64()), ("share", pa.float64())),
        memory="free the device, or name a smaller quality_scorer",
        numbers="check the weights of quality_scorer, or name another one",
        verb="grading",
    )
    max_prompt_tokens = 2048  # of the question with the row's instruction and answer: the positions of DEITA's scorer
    fix = "give the row a quality of its own (field_quality), or shorten it"
    cut_warning = "the end of %d answers was not shown to the quality scorer: they are too long for it"

    def _template(self) -> Template:
        return quality_template(self.source.tokenizer)

    def _own_recipe(self, question: str, room: int) -> dict[str, Any]:
        self.grade_ids = tuple(self._next_token(question, grade) for grade in _GRADES)
        if len(set(self.grade_ids)) < len(_GRADES) or self.source.tokenizer.unk_token_id in self.grade_ids:
            raise ModelError(
                f"{self.named}: its vocabulary does not tell the grades {', '.join(_GRADES)} apart; name another"
            )
        return {"grades": self.grade_ids, "tokens": room, "version": _VERSIONS}

    def _next_token(self, prompt: str, grade: str) -> int:
        """Return a grade's token right after the prompt; a ModelError where it is several, or merges with that."""
        before, after = (
            self.source.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            for text in (prompt, prompt + grade)
        )
        if len(after) != len(before) + 1 or list(after[:-1]) != list(before):
            raise ModelError(f"{self.named}: after its prompt, {grade!r} is no token of its own; name another model")
        return int(after[-1])

    def key(self, row: Row) -> bytes:
        """Return 16 bytes that stand for all that produces a row's grade."""
        return text_key(self.recipe, row.instruction, row.reference)

    def load(self) -> Grades:
        """Return the model, in memory."""
        from adg_plugin.engines.judges.causal_lm import Grades

        return Grades(self.source.load().model, self.grade_ids)


def ratings_of(run: RunReader, config: ADGConfig, rows: Sequence[Row]) -> list[Rated]:
    """Return the stored grade of each row; no scorer is looked for where none of them has an answer.

    Grades of another model or of other texts do not count: such a row's reason is `not_measured`.
    """
    found = dict.fromkeys(range(len(rows)), Rated(None, None, Reason.NO_ANSWER.value))
    if in_words := [number for number, row in enumerate(rows) if row.reference.strip()]:
        table = stored_measure(run, Rater.measure, Rater(config), [rows[number] for number in in_words])
        columns = (table[name].to_pylist() for name in Rated._fields)
        found |= {number: Rated(*values) for number, *values in zip(in_words, *columns, strict=True)}
    return list(found.values())


def quality_template(tokenizer: Any) -> Template:
    """Return what shows instruction and response, the grade to come next. If too long, the response's end goes.

    A chat model is asked in a turn of its own template; a model without one is taken for a scorer of DEITA's kind, and
    gets the prompt of these.
    """
    if not getattr(tokenizer, "chat_template", None):
        before, between, after = _DEITA
        return lambda row: framed(f"{before}{row.instruction}{between}", row.reference, after, special_tokens=True)
    chat = ChatTemplate(tokenizer)

    def shown(row: Row) -> PromptText:
        head = f"{_QUESTION}{row.instruction}{_RESPONSE}"
        turn = {"role": "user", "content": head + row.reference}
        prompt = chat.render(replace(row, messages=(turn,), instruction=turn["content"]))
        # A prompt without any of the answer would be a grade of nothing.
        return replace(prompt, cut_limit=max(prompt.cut_limit, prompt.start + len(head)))

    return shown
