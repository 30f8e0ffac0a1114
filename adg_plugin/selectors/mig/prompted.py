"""What the tagger and the quality scorer have in common: a question in a model's own template, with a row's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from adg_plugin.data.prompts import PromptRenderer, Rendered
from adg_plugin.data.rows import Row
from adg_plugin.errors import ModelError

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Source

_LEAST_TOKENS = 64  # that a question must leave for a row's own words

R = TypeVar("R")


@dataclass(slots=True)
class PromptedJudge(Generic[R]):
    """A model that is asked in words, loaded when it is.

    Attributes:
        recipe: of all that an answer depends on, apart from the row's own words.
        column: rows that have something of their own in it are not asked about.
        cut: rows whose end was not shown to the model, for want of room.
    """

    source: Source
    renderer: PromptRenderer
    to_row: Callable[[R], Row]
    recipe: bytes
    column: str
    cut: int = 0

    def inputs(self, rows: Sequence[R]) -> Iterator[Sequence[Rendered] | str]:
        """Yield the question about each row, or why the template cannot show it."""
        for _, shown in self.renderer.render_many(rows, self.to_row):
            if isinstance(shown, Rendered):
                self.cut += shown.truncated
                yield [shown]
            else:
                yield shown.reason.value


def bare_question(named: str, tokenizer: Any, template: Any, row: Row, room: int) -> Rendered:
    """Return the question about a row without words, whose tokens are the question's own.

    Args:
        named: the setting and its value, for the errors.
        room: tokens that a question may take.

    Raises:
        ModelError: the template cannot show it, or it leaves no room for a row's own words.
    """
    empty = PromptRenderer(tokenizer, template, None).render(row)
    if not isinstance(empty, Rendered):
        raise ModelError(f"{named}: it cannot be asked ({empty.detail}); name another model")
    if room < len(empty.token_ids) + _LEAST_TOKENS:  # else the question would be cut, not the row's words
        raise ModelError(
            f"{named}: a question may take {room} tokens, and has {len(empty.token_ids)} without the row's own words; "
            "name a model with more positions or a larger vocabulary"
        )
    return empty
