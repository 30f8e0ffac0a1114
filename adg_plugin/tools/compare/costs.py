"""What it takes to ask models for what methods choose by, also where an earlier run asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, StoreError
from adg_plugin.report.side_files import COMPARE, read_comparison
from adg_plugin.selectors.registry import selector
from adg_plugin.store import RunReader
from adg_plugin.store.stats import seconds_of


@dataclass(frozen=True, slots=True)
class Cost:
    """Rows that a model was asked about, and what that took.

    Attributes:
        rows: of earlier runs, as far as they left a record, and of this one.
        seconds: for these.
        tokens: drawn or predicted.
        seconds_now: those of this run.
        of: rows that there are to ask about; None: all that could be sampled.
    """

    rows: int = 0
    seconds: float = 0.0
    tokens: int = 0
    seconds_now: float = 0.0
    of: int | None = None

    def with_now(self, stats: Mapping[str, Any]) -> Cost:
        """Return it with what this run took, as sampling or measuring says."""
        seconds = seconds_of(stats)
        return Cost(
            self.rows + int(stats.get("rows", 0)),
            self.seconds + seconds,
            self.tokens + int(stats.get("tokens", 0)),
            seconds,
            stats.get("total", self.of),
        )

    def is_whole(self, rows: int) -> bool:
        """Return whether a record is there of all rows to ask about, of so many: an interrupted run leaves none."""
        return self.rows >= (rows if self.of is None else self.of)

    def summary(self, rows: int) -> dict[str, Any]:
        """Return the figures, for JSON."""
        return {
            "rows": self.rows,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "seconds_now": self.seconds_now,
            "of": rows if self.of is None else self.of,
            "is_whole": self.is_whole(rows),
        }


def costs_before(run: RunReader, recipe: Mapping[str, Any]) -> dict[str, Cost]:
    """Return what earlier runs say of the cost of what the run folder holds.

    Args:
        run: the run folder, with its staged pool.
        recipe: of its answers; records of others do not count.

    Raises:
        StoreError: compare.json or manifest.json cannot be read, or is not as it is written.
    """
    found: dict[str, Cost] = {}
    manifest = run.manifest()
    if manifest is not None and manifest.get("recipe") == dict(recipe):
        for name, stats in _recorded(manifest):
            found[name] = Cost().with_now(stats)
    before = read_comparison(run)
    if before is not None and before.get("recipe") == dict(recipe):
        try:
            for name, cost in before["costs"].items():
                found[name] = Cost(int(cost["rows"]), float(cost["seconds"]), int(cost["tokens"]), of=cost.get("of"))
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise StoreError(f"{run.path / COMPARE} has no costs that can be read ({err!r}): delete it") from err
    return {name: replace(cost, seconds_now=0.0) for name, cost in found.items() if cost.rows}


def _recorded(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and record of each cost of a selection; none where what chose is not installed any more."""
    with suppress(ConfigError):
        config = ADGConfig.of_run(manifest["config"])
        yield from selector(config.method).costs(config, manifest["sampling"])
