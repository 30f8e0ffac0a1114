"""Single values of a row: what is missing, what is text, and why a row cannot be used."""

from __future__ import annotations

import json
from enum import StrEnum
from math import isnan
from typing import Any


class Reason(StrEnum):
    """Why a row is rejected; the value is what files and counts hold."""

    NO_INSTRUCTION = "no_instruction"
    WHITE_SPACE = "only_white_space"
    NO_USER_TURN = "no_user_turn"
    UNKNOWN_ROLE = "unknown_role"
    BAD_TYPE = "bad_type"
    UNSUPPORTED_CONTENT = "unsupported_content"
    DUPLICATE = "duplicate"
    TEMPLATE = "template_error"
    BAD_TEXT = "not_unicode"
    NO_SPAN = "no_instruction_tokens"
    TOO_LONG = "prompt_too_long"
    UNKNOWN_TOKEN = "unknown_token"
    NO_ANSWER = "no_answer"
    NO_GIVEN = "no_given_answers"  # this and the next three: with `answers`, or in `adg score`
    OTHER_PROMPT = "other_prompt"
    FEW_ANSWERS = "too_few_answers"
    LONG_ANSWERS = "too_long"
    FEW_WORDS = "too_few_words"  # this and what follows: by the settings under `filters`
    MANY_WORDS = "too_many_words"
    FEW_ANSWER_WORDS = "too_few_answer_words"
    MANY_ANSWER_WORDS = "too_many_answer_words"
    UNDERSPECIFIED = "underspecified"
    LANGUAGE = "other_language"
    NEAR_DUPLICATE = "near_duplicate"


class UnusableRowError(Exception):
    """A row cannot be used; becomes a `Rejection` where the row's id is known."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty: None, or NaN, which pandas writes for None."""
    return value is None or (isinstance(value, float) and isnan(value))


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: white space, control characters and invisible marks only."""
    return all(character.isspace() or not character.isprintable() for character in text)


def text_of(value: Any, name: str) -> str:
    """Return a value that is text; an UnusableRowError for any other."""
    if not isinstance(value, str):
        raise UnusableRowError(Reason.BAD_TYPE, f"{name} is {shown(value)}, expected text")
    return value


def decoded(value: Any) -> Any:
    """Return lists and objects that a column holds as JSON text, as CSV must; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def shown(value: Any) -> str:
    """Return type and beginning of a value, for error texts."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
