"""What a text is made of: its words, also where the script puts no spaces between them, and its language."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import islice
from typing import Any

from adg_plugin.errors import need

FEWEST_LETTERS = 20  # with fewer, no language is given
# Below it, the detector calls names and plain English questions Welsh, Latin or Nigerian Pidgin.
_LEAST_PROBABILITY = 0.8
_LONGEST_TEXT = 2000  # characters whose language is looked at; more of a text tells nothing more, and costs time
# Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer. Korean has spaces.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31a0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_RUN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_LAST_SIGNS = " \t\n.?…。？"


def count_words(text: str) -> int:
    """Return the number of words: runs between spaces that hold a letter or a digit.

    Where a script has no spaces, each letter counts one, and marks above or below letters none.
    """
    return sum(any(map(str.isalnum, run)) for run in _RUN.findall(text))


def tokens(text: str) -> list[str]:
    """Return words and single signs, in lower case, for comparing texts.

    Signs count: `2 + 3` and `2 - 3` are not the same. A full stop or question mark at the very end does not.
    """
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold().rstrip(_LAST_SIGNS))


def language_of(text: str) -> str | None:
    """Return the ISO 639 code of a text's language; None for under 20 letters, or a probability below 0.8.

    It is told offline, and always the same.

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
