"""How a model is asked for the quality of a reference response: a prompt after which a grade from 1 to 6 is to come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adg_plugin.data.rows import Row
from adg_plugin.data.templates import ChatTemplate, PromptText, framed

GRADES = ("1", "2", "3", "4", "5", "6")
# Raise it when what is asked changes: grades for another question do not count.
QUESTION_VERSION = 1

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


class QualityTemplate:
    """Shows instruction and response, the grade to come next. Where the prompt is too long, the response's end goes.

    A chat model is asked in a turn of its own template; a model without one is taken for a scorer of DEITA's kind, and
    gets the prompt of these.

    Raises:
        ModelError: its chat template cannot be used.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.is_chat = bool(getattr(tokenizer, "chat_template", None))
        self._chat = ChatTemplate(tokenizer, None) if self.is_chat else None

    def render(self, row: Row) -> PromptText:
        """Return the prompt for a row's `instruction` and `reference`; an UnusableRowError where it cannot be shown."""
        if self._chat is None:
            before, between, after = _DEITA
            return framed(f"{before}{row.instruction}{between}", row.reference, after, special_tokens=True)
        head = f"{_QUESTION}{row.instruction}{_RESPONSE}"
        turn = {"role": "user", "content": head + row.reference}
        prompt = self._chat.render(replace(row, messages=(turn,), instruction=turn["content"]))
        # A prompt without any of the answer would be a grade of nothing.
        return replace(prompt, cut_limit=max(prompt.cut_limit, prompt.start + len(head)))
