"""What MIG asks of a model in words about rows that lack labels or a quality, and what of it is kept."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.prompts import PromptLimit, PromptRenderer, Rendered
from adg_plugin.data.rows import Row
from adg_plugin.data.templates import Template
from adg_plugin.engines.models.side_models import other_model
from adg_plugin.errors import ModelError
from adg_plugin.selectors.base import Ask
from adg_plugin.selectors.measure import Measure, fill_measure
from adg_plugin.selectors.mig.columns import column_of
from adg_plugin.store import RunFolder, RunReader, keys

if TYPE_CHECKING:
    from adg_plugin.engines.judges.judge import JudgeModel

logger = logging.getLogger(__name__)

_LEAST_TOKENS = 64  # that a question must leave for a row's own words


class PromptedJudge(ABC):
    """A model, not loaded, that is asked a question in its own template about rows without something of their own.

    Raises:
        ModelError: it is missing, its template cannot show the question, or leaves no room for a row's own words.
    """

    setting: ClassVar[str]  # that names the model
    column: ClassVar[str]  # the setting that names the column; rows that have something in it are not asked about
    has_own: ClassVar[Callable[[Any], bool]]  # whether a value of the column is something, readable or not
    with_answer: ClassVar[bool] = False  # whether the question shows it; rows without one are not asked about
    measure: ClassVar[Measure]
    max_prompt_tokens: ClassVar[int]  # of the question with the row's own words
    new_tokens: ClassVar[int] = 0  # of an answer, at most
    fix: ClassVar[str]  # what to do about a row that is too long
    cut_warning: ClassVar[str]  # of the rows whose end was not shown to the model, for want of room

    def __init__(self, config: ADGConfig) -> None:
        self.config, self.cut = config, 0
        self.named = f"{self.setting} is {getattr(config, self.setting)!r}"
        self.source = other_model(config, self.setting)
        template, most = self._template(), self.max_prompt_tokens
        room = most if self.source.positions is None else min(most, self.source.positions - self.new_tokens)
        bare = PromptRenderer(self.source.tokenizer, template, None).render(question_row("", "?", "?"))
        if not isinstance(bare, Rendered):
            raise ModelError(f"{self.named}: it cannot be used ({bare.detail}); name another model")
        if room < len(bare.token_ids) + _LEAST_TOKENS:  # else the question would be cut, not the row's words
            raise ModelError(
                f"{self.named}: a question may take {room} tokens, and has {len(bare.token_ids)} without the row's own "
                "words; name a model with more positions or a larger vocabulary"
            )
        limit = PromptLimit(room, self.named, self.fix, self.source.vocabulary)
        self.renderer = PromptRenderer(self.source.tokenizer, template, limit, truncate=True)
        # All that an answer depends on, apart from the row: the question's tokens stand for template and vocabulary.
        recipe = {"model": self.source.identity, "question": bare.token_ids.tolist()}
        self.recipe = keys.digest({**recipe, **self._own_recipe(bare.text, room)})

    @abstractmethod
    def _template(self) -> Template:
        """Return how the question about a row is shown."""

    @abstractmethod
    def _own_recipe(self, question: str, room: int) -> dict[str, Any]:
        """Return what else an answer depends on, from the bare question and the tokens that a whole one may take."""

    @abstractmethod
    def key(self, row: Row) -> bytes:
        """Return 16 bytes that stand for all that produces a row's answer."""

    @abstractmethod
    def load(self) -> JudgeModel[Rendered]:
        """Return the model, in memory."""

    def inputs(self, rows: Sequence[Row]) -> Iterator[Sequence[Rendered] | str]:
        """Yield the question about each row, or why the template cannot show it."""
        for _, shown in self.renderer.render_many(rows):
            if isinstance(shown, Rendered):
                self.cut += shown.truncated
                yield [shown]
            else:
                yield shown.reason.value

    def rows(self, run: RunReader) -> Iterator[Row]:
        """Yield the staged rows that it is asked about, in the pool's order."""
        return self._lacking(run, self.config)

    @classmethod
    def _lacking(cls, run: RunReader, config: ADGConfig) -> Iterator[Row]:
        column, answers = getattr(config, cls.column), ["reference"] if cls.with_answer else []
        for table in run.staged_columns(["id", "instruction", "data", *answers]):
            for row in table.to_pylist():
                answer = row.get("reference") or ""
                can_be_asked = not cls.with_answer or answer.strip()
                if can_be_asked and not cls.has_own(column_of(row["data"], column)):
                    yield question_row(row["id"], row["instruction"], answer)

    @classmethod
    def is_needed(cls, run: RunReader, config: ADGConfig) -> bool:
        """Return whether the settings name such a model, and a staged row is for it."""
        return bool(getattr(config, cls.setting)) and next(cls._lacking(run, config), None) is not None

    @classmethod
    def cost(cls, config: ADGConfig) -> str:
        """Return the name of what asking costs."""
        return f"{cls.setting.replace('_', ' ')} {getattr(config, cls.setting)} for {getattr(config, cls.column)}"

    @classmethod
    def asking(cls, config: ADGConfig) -> Ask:
        """Return what is asked."""
        return Ask(cls.cost(config), lambda run, config, _, show: cls.ask(run, config, show=show))

    @classmethod
    def ask(cls, run: RunFolder, config: ADGConfig, *, show: bool) -> dict[str, Any]:
        """Ask about the rows of a run folder that have no answer yet, and return what it took, as `fill_measure`.

        Raises:
            ModelError: the model cannot be used.
        """
        if not cls.is_needed(run, config):
            return {"rows": 0}
        judge = cls(config)
        stats = fill_measure(run, cls.measure, judge, show=show)
        if judge.cut:
            logger.warning(cls.cut_warning, judge.cut)
        return stats


def question_row(id: str, instruction: str, reference: str = "") -> Row:
    """Return a row as the questions' templates take it."""
    return Row(
        id=id,
        messages=({"role": "user", "content": instruction},),
        text=None,
        instruction=instruction,
        input="",
        answer={"role": "assistant", "content": reference} if reference else None,
        completion_start=1,
        tools=None,
        # Models that can think first are asked not to: the answer is a list, or a grade that has to come next.
        chat_template_kwargs={"enable_thinking": False},
        data={},
        where="",
        entry=0,
    )
