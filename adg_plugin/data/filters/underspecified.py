"""Rows whose sampled answers ask for an input that is not there; docs/method.md has what this overlooks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_FIRST_CHARACTERS = 300  # what is missing is asked for at once; further on, a letter that the answer writes may ask
_INPUT = (
    r"(?:text|passage|paragraph|article|sentence|excerpt|document|essay|e-?mail|letter|message|poem|story|dialogue|"
    r"conversation|review|code|snippet|query|table|list|dataset|image|picture|photo|file|link|equation|input|prompt)s?"
)
_THE = r"(?:(?:the|your|an?|any|some|more|me|us|with|full|complete|actual|original|specific) )*(?:\w+ ){0,2}"
_ASKS = re.compile(
    "|".join(
        (
            r"(?:please|(?:could|can|would) you) (?:please |also )*(?:provide|share|paste|send|supply|include|attach|"
            rf"upload|give|specify) {_THE}(?:{_INPUT}|information|context|details?)\b",
            r"you (?:did not|didn't|have not|haven't|forgot to) (?:actually |yet )?(?:provide|include|share|paste|give|"
            r"attach|upload|specif)",
            rf"i(?:'d|'ll| would| will)? (?:also )?need {_THE}{_INPUT} (?:to|in order|you|before|first)\b",
            rf"i (?:do not|don't|can't|cannot|can not) (?:actually )?(?:see|find|have(?: access to)?) {_THE}{_INPUT}\b",
            rf"no {_INPUT} (?:(?:is|was|were|has been|have been) )?(?:provided|given|included|attached|shared)\b",
        )
    ),
    re.I,
)


def asked_for(answer: str) -> str | None:
    """Return the words in which an answer asks for what its instruction lacks, or None."""
    found = _ASKS.search(" ".join(answer[:_FIRST_CHARACTERS].replace("’", "'").split()))
    return None if found is None else found.group()


def underspecified(rows: Iterable[tuple[str, Sequence[str]]]) -> dict[str, str]:
    """Return the ids of the rejected rows, each with a sentence that says why; `rows` are ids and sampled answers."""
    rejected = {}
    for id, answers in rows:
        asks = [words for words in map(asked_for, answers) if words is not None]
        if 2 * len(asks) > len(answers):
            rejected[id] = (
                f"{len(asks)} of {len(answers)} sampled answers ask for an input that is not there "
                f"({asks[0]!r}), filters.underspecified is true"
            )
    return rejected
