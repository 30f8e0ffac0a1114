"""Rows in other languages than those that are wanted."""

from __future__ import annotations

import difflib

from adg_plugin.data.filters.base import Rejected, asked
from adg_plugin.data.languages import FEWEST_LETTERS, known_languages, language_of
from adg_plugin.data.layouts import Reason
from adg_plugin.data.rows import Row
from adg_plugin.errors import ConfigError


class Languages:
    """Rejects rows whose instruction is in none of the wanted languages; one of unknown language stays.

    The input may be in any language (`Translate the text into English.`): it is looked at only where the instruction
    is too short to tell.
    """

    def __init__(self, wanted: tuple[str, ...]) -> None:
        """Check the wanted languages; a ConfigError for an unknown one, a MissingExtraError without `py3langid`."""
        self._wanted = frozenset(wanted)
        self._listed = ", ".join(wanted)
        known = sorted(known_languages())
        problems = []
        for code in sorted(self._wanted.difference(known)):
            close = difflib.get_close_matches(code, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(known)}"
            problems.append(f"filters.languages has {code!r}, which cannot be told from others: {hint}")
        if problems:
            raise ConfigError(problems)

    def __call__(self, row: Row) -> Rejected | None:
        """Return why the row is rejected, or None."""
        is_enough = sum(map(str.isalpha, row.instruction)) >= FEWEST_LETTERS
        found = language_of(row.instruction if is_enough else asked(row))
        if found is None or found in self._wanted:
            return None
        return Reason.LANGUAGE, f"{found}, filters.languages is {self._listed}"
