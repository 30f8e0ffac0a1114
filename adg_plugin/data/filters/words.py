"""Text -> words, also where the script puts no spaces between them."""

from __future__ import annotations

import re
import unicodedata

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
