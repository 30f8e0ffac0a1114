"""What a model is asked for a row's tags, and how its answer is read."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

# Raise it when the question changes: answers to another one do not count.
QUESTION_VERSION = 1

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
