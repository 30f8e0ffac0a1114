"""Tags for rows without labels: what a chat model is asked, and how its answer is read."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from adg_plugin.data.rows import Row
from adg_plugin.data.templates import ChatTemplate, PromptText, Template
from adg_plugin.errors import ModelError
from adg_plugin.selectors.measure import Measure
from adg_plugin.selectors.mig.columns import has_labels
from adg_plugin.selectors.mig.prompted import PromptedJudge
from adg_plugin.store.ledger import measure_schema

if TYPE_CHECKING:
    from adg_plugin.engines.judges.causal_lm import GreedyAnswers

# Raise the first when the question changes, the other when the same model and question come to give other answers:
# answers to another one do not count.
_VERSIONS = [1, 1]

_QUESTION = (
    "Tag the request below: its topics and the kind of task, 1 to 5 tags of one to three words, as a JSON list of "
    "texts.\n\nRequest:\n"
)
# Turns that show what is meant: without them a small model answers the request. None is a row of any pool.
_EXAMPLES = (
    ("Write a short poem about the first snow.", ("creative writing", "poetry", "winter")),
    ("A train travels 120 km in 1.5 hours. What is its average speed?", ("math", "word problem", "physics")),
    ("Translate into French: Where is the library?", ("translation", "french")),
    ("Why does my Python loop never stop?\n\nwhile x > 0: print(x)", ("programming", "python", "debugging")),
)
_LONGEST_TAG = 60  # characters: a sentence is no tag


class Tagger(PromptedJudge):
    """A chat model that can be asked for tags: it answers greedily, after its own chat template."""

    setting, column = "tagger", "field_labels"
    has_own: ClassVar[Callable[[Any], bool]] = staticmethod(has_labels)
    measure: ClassVar[Measure] = Measure(
        "tags",
        measure_schema(("answer", pa.string())),
        memory="free the device or name a smaller tagger",
        numbers="check its weights, or name another tagger",
        verb="tagging",
        each_batch=True,
    )
    max_prompt_tokens = 1024  # of the question, its examples and the row's words
    new_tokens = 64  # five tags take about 30
    fix = "name another model"
    cut_warning = "the end of %d instructions was not shown to the tagger: they are too long for it"

    def _template(self) -> Template:
        if not getattr(self.source.tokenizer, "chat_template", None):
            raise ModelError(f"tagger is {self.config.tagger!r}: its tokenizer has no chat template; name a chat model")
        chat = ChatTemplate(self.source.tokenizer)

        def shown(row: Row) -> PromptText:
            turns = conversation(row.instruction)
            return chat.render(replace(row, messages=turns, instruction=turns[-1]["content"]))

        return shown

    def _own_recipe(self, question: str, room: int) -> dict[str, Any]:
        return {"tokens": [room, self.new_tokens], "version": _VERSIONS}

    def key(self, row: Row) -> bytes:
        """Return 16 bytes that stand for all that produces a row's answer."""
        return hashlib.blake2b(self.recipe + row.instruction.encode(errors="surrogatepass"), digest_size=16).digest()

    def load(self) -> GreedyAnswers:
        """Return the model, in memory."""
        from adg_plugin.engines.judges.causal_lm import GreedyAnswers

        backbone = self.source.load()
        return GreedyAnswers(backbone.model, backbone.tokenizer, backbone.eos_ids, max_new_tokens=self.new_tokens)


def conversation(instruction: str) -> tuple[dict[str, str], ...]:
    """Return what a model is asked of a row, as turns. The row's own words come last: if too long, their end goes."""
    turns = [
        {"role": role, "content": content}
        for request, tags in _EXAMPLES
        for role, content in (("user", _QUESTION + request), ("assistant", json.dumps(tags)))
    ]
    return (*turns, {"role": "user", "content": _QUESTION + instruction})


def read_tags(answer: str) -> tuple[str, ...]:
    """Return the tags in a model's answer, as it wrote them; none where there is no whole list of them.

    The list may stand in a sentence or a code block, be written as Python does, or be one of objects with a key `tag`.
    What is cut off, what has no brackets, tags without a letter and tags of more than 60 characters are not guessed at.
    """
    text = answer.rpartition("</think>")[2]
    for opening in re.finditer(r"\[", text):
        found = _list_at(text, opening.start())
        if found is not None and (tags := _tags(found)):
            return tags
    return ()


def _list_at(text: str, start: int) -> list[Any] | None:
    try:
        found, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        end = text.find("]", start)
        try:
            found = ast.literal_eval(text[start : end + 1])
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
    return found if isinstance(found, list) else None


def _tags(found: list[Any]) -> tuple[str, ...]:
    named = [item.get("tag") if isinstance(item, dict) else item for item in found]
    texts = [item.strip() for item in named if isinstance(item, str)]
    if len(texts) < len(named):
        return ()
    return tuple(dict.fromkeys(tag for tag in texts if len(tag) <= _LONGEST_TAG and re.search(r"[^\W\d_]", tag)))
