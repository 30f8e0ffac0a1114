"""Rows that settings reject before they are sampled, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adg_plugin.config.filters import Filters
from adg_plugin.data.filters.agreement import AGREEMENT_SETTINGS
from adg_plugin.data.filters.base import Rejected, RowFilter
from adg_plugin.data.filters.language import Languages
from adg_plugin.data.filters.lengths import WordCounts
from adg_plugin.data.filters.near_duplicates import NearDuplicates
from adg_plugin.data.rows import Rejection, Row

_OF_ROWS = {  # the settings that are applied here, each with what it is where it is off
    "min_words": None,
    "max_words": None,
    "min_answer_words": None,
    "max_answer_words": None,
    "near_duplicates": None,
    "languages": (),
}


def row_settings(filters: Filters) -> Mapping[str, Any]:
    """Return those of the filters that reject rows of the pool, without those that are off."""
    settings = {name: getattr(filters, name) for name in _OF_ROWS}
    return {name: value for name, value in settings.items() if value != _OF_ROWS[name]}


class RowFilters:
    """The filters that are on, in turn."""

    def __init__(self, filters: Filters) -> None:
        """Make those that are on; a ConfigError for an unknown language, a MissingExtraError for a missing package."""
        self.settings = row_settings(filters)
        agreement = {name: getattr(filters, name) for name in AGREEMENT_SETTINGS}
        self._refused = {**self.settings, **{name: value for name, value in agreement.items() if value is not None}}
        self._filters: list[RowFilter] = [WordCounts(filters)] if any("words" in name for name in self.settings) else []
        if filters.languages:
            self._filters.append(Languages(filters.languages))
        if filters.near_duplicates is not None:  # last: it must not remember a row that another one rejects
            self._filters.append(NearDuplicates(filters.near_duplicates))

    def refusal(self, where: str) -> str:
        """Return the sentence for a row of Axolotl's whose text is not known, so that nothing can look at it.

        It names what agreement asks for, too, which needs the reference response but is no filter before sampling.
        """
        named = ", ".join(f"adg.filters.{name} is {_shown(value)}" for name, value in self._refused.items())
        fix = "leave adg.filters out, or write the rows as alpaca or chat_template"
        return f"{named}, but what the instruction of {where} is cannot be told: {fix}"

    def rejection(self, row: Row) -> Rejection | None:
        """Return why a row of the pool is rejected, or None where it stays.

        Each row is given once, in the pool's order, and only if nothing else rejects it.
        """
        for check in self._filters:
            found: Rejected | None = check(row)
            if found is not None:
                return Rejection.of(row, *found)
        return None


def _shown(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value).lower()
