"""Rows that settings reject, each with its reason: before they are sampled, or by what was sampled."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from adg_plugin.config.groups import Filters
from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.cells import Reason
from adg_plugin.data.near_duplicates import NearDuplicates
from adg_plugin.data.rows import Rejection, Row
from adg_plugin.data.text import FEWEST_LETTERS, count_words, known_languages, language_of
from adg_plugin.errors import ConfigError

_OF_ROWS = ("min_words", "max_words", "min_answer_words", "max_answer_words", "near_duplicates", "languages")

DISAGREES = "low_agreement"
AGREEMENT_SETTINGS = ("min_agreement", "drop_least_agreeing")

# What `underspecified` overlooks is in docs/method.md.
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

Floats = npt.NDArray[np.floating]
Rejected = tuple[Reason, str]  # for counting, and a detail for reading


def row_settings(filters: Filters) -> dict[str, Any]:
    """Return those of the filters that reject rows of the pool, without those that are off."""
    return filters.on(*_OF_ROWS)


class RowFilters:
    """The filters that are on, in turn."""

    def __init__(self, filters: Filters) -> None:
        """Make those that are on; a ConfigError for an unknown language, a MissingExtraError for a missing package."""
        self.settings = row_settings(filters)
        self._refused = {**self.settings, **filters.on(*AGREEMENT_SETTINGS)}
        self._filters: list[Callable[[Row], Rejected | None]] = []
        if any("words" in name for name in self.settings):
            self._filters.append(partial(_by_words, filters))
        if filters.languages:
            _check_languages(filters.languages)
            self._filters.append(partial(_by_language, filters.languages))
        if filters.near_duplicates is not None:  # last: it must not remember a row that another one rejects
            self._filters.append(NearDuplicates(filters.near_duplicates))

    def refusal(self, where: str) -> str:
        """Return the sentence for a row of Axolotl's whose text is not known, so that nothing can look at it.

        It names what agreement asks for, too, which needs the reference response but is no filter before sampling.
        """
        shown = {k: f"[{', '.join(v)}]" if isinstance(v, tuple) else v for k, v in self._refused.items()}
        named = ", ".join(f"adg.filters.{name} is {value}" for name, value in shown.items())
        fix = "leave adg.filters out, or write the rows as alpaca or chat_template"
        return f"{named}, but what the instruction of {where} is cannot be told: {fix}"

    def rejection(self, row: Row) -> Rejection | None:
        """Return why a row of the pool is rejected, or None where it stays.

        Each row is given once, in the pool's order, and only if nothing else rejects it.
        """
        for check in self._filters:
            if (found := check(row)) is not None:
                return Rejection.of(row, *found)
        return None


def _by_words(limits: Filters, row: Row) -> Rejected | None:
    """Return why a row has too few or too many words, or None; the instruction is looked at first."""
    for text, kind, few, many, where in (
        (row.question, "", Reason.FEW_WORDS, Reason.MANY_WORDS, ""),
        (row.reference, "answer_", Reason.FEW_ANSWER_WORDS, Reason.MANY_ANSWER_WORDS, " in the answer"),
    ):
        count = count_words(text)
        shown = f"{'1 word' if count == 1 else f'{count} words'}{where}"
        fewest, most = getattr(limits, f"min_{kind}words"), getattr(limits, f"max_{kind}words")
        if fewest is not None and count < fewest:
            return few, f"{shown}, filters.min_{kind}words is {fewest}"
        if most is not None and count > most:
            return many, f"{shown}, filters.max_{kind}words is {most}"
    return None


def _check_languages(wanted: tuple[str, ...]) -> None:
    known = sorted(known_languages())
    problems = []
    for code in sorted(set(wanted).difference(known)):
        close = difflib.get_close_matches(code, known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(known)}"
        problems.append(f"filters.languages has {code!r}, which cannot be told from others: {hint}")
    if problems:
        raise ConfigError(problems)


def _by_language(wanted: tuple[str, ...], row: Row) -> Rejected | None:
    """Return why a row's instruction is in none of the wanted languages, or None; one of unknown language stays.

    The input may be in any language (`Translate the text into English.`): it is looked at only where the instruction
    is too short to tell.
    """
    is_enough = sum(map(str.isalpha, row.instruction)) >= FEWEST_LETTERS
    found = language_of(row.instruction if is_enough else row.question)
    if found is None or found in wanted:
        return None
    return Reason.LANGUAGE, f"{found}, filters.languages is {', '.join(wanted)}"


@dataclass(frozen=True, slots=True)
class ReferenceResponses:
    """Turns reference responses into at most `tokens` tokens (`max_new_tokens`: like is compared with like; 0: off)."""

    tokenizer: Any
    tokens: int

    @classmethod
    def of(cls, config: ADGConfig, tokenizer: Any) -> ReferenceResponses:
        """Return what the settings ask for."""
        return cls(tokenizer, config.max_new_tokens if config.filters.asks_agreement else 0)

    def ids(self, text: str) -> npt.NDArray[np.int32] | None:
        """Return the tokens (T,) of a reference response; None where there is none, or nobody asks."""
        if not self.tokens or not text.strip():
            return None
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: self.tokens]
        return np.array(ids, dtype=np.int32) if len(ids) else None


def least_agreeing(agreement: Floats, filters: Filters) -> npt.NDArray[np.bool_]:
    """Return which rows (N,) are rejected by their agreement (N,), a cosine in [-1, 1]; NaN, no response, never is."""
    known = np.flatnonzero(~np.isnan(agreement))
    rejected = np.zeros(len(agreement), dtype=bool)
    if filters.min_agreement is not None:
        rejected[known] = agreement[known] < filters.min_agreement
    if filters.drop_least_agreeing is not None:
        lowest = known[np.argsort(agreement[known], kind="stable")]
        # In decimal, as written: in binary 0.29 * 100 falls below 29.
        count = int(Decimal(str(filters.drop_least_agreeing)) * len(known))
        rejected[lowest[:count]] = True
    return rejected


def details(agreement: Floats, filters: Filters) -> Sequence[str]:
    """Return a sentence for each rejected row."""
    asked = ", ".join(f"filters.{name} is {value}" for name, value in filters.on(*AGREEMENT_SETTINGS).items())
    return [f"agreement {value:.4f}, {asked}" for value in agreement]


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
