"""An entry of Axolotl's `datasets` whose `type` is a mapping of formats -> the prompt that Axolotl makes of a row."""

from __future__ import annotations

from dataclasses import dataclass

from adg_plugin.data.rows import Row
from adg_plugin.data.templates import PromptText, framed


@dataclass(frozen=True, slots=True)
class Formats:
    """The formats of an entry, with `{instruction}`, `{input}` and `{system}` in them.

    Attributes:
        with_input: of rows that have an input.
        without_input: of all others.
        system: stands before, where a row has a system prompt or the entry names one.
        system_prompt: of rows that have none of their own.
    """

    with_input: str
    without_input: str
    system: str
    system_prompt: str

    def render(self, row: Row) -> PromptText:
        """Return the prompt of a row. What is asked reaches from the first `{instruction}` or `{input}` to the last."""
        form = self.with_input if row.input else self.without_input
        first, last = len(form.partition("{")[0]), len(form.rpartition("}")[2])
        text = form.format(instruction=row.instruction, input=row.input)
        asked, after = text[first : len(text) - last], text[len(text) - last :]
        return framed(self._head(row) + text[:first], asked, after, special_tokens=True)

    def _head(self, row: Row) -> str:
        own = row.messages[0] if row.messages else {}
        system = own.get("content", "") if own.get("role") == "system" else self.system_prompt
        return self.system.format(system=system) if system else ""
