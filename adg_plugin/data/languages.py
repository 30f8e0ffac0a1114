"""Text -> the language it is written in, offline and always the same, or None where that is not clear."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import Any

from adg_plugin.errors import need

FEWEST_LETTERS = 20  # with fewer, no language is given
# Below it, the detector calls names and plain English questions Welsh, Latin or Nigerian Pidgin.
_LEAST_PROBABILITY = 0.8
_LONGEST_TEXT = 2000  # characters looked at; more of a text tells nothing more, and costs time


def language_of(text: str) -> str | None:
    """Return the ISO 639 code of a text's language; None for under 20 letters, or a probability below 0.8.

    Raises:
        MissingExtraError: `py3langid` is not installed.
    """
    if len(list(islice(filter(str.isalpha, text), FEWEST_LETTERS))) < FEWEST_LETTERS:
        return None
    language, probability = _detector().classify(text[:_LONGEST_TEXT])
    return str(language) if probability >= _LEAST_PROBABILITY else None


def known_languages() -> frozenset[str]:
    """Return the codes that `language_of` may give; a MissingExtraError where `py3langid` is not installed."""
    return frozenset(_detector().labels)


@cache
def _detector() -> Any:
    langid = need("py3langid", extra="filters", why="telling languages").langid
    # Of its own, not the package's global one, whose languages other code may restrict.
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
