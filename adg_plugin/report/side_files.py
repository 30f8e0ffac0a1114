"""Files that commands leave in a run folder, for the report to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adg_plugin.store import RunReader
from adg_plugin.store.files import read_json

COMPARE = "compare.json"  # in the run folder


def format_chance(jaccard: Sequence[Sequence[float]]) -> str:
    """Return in words what two different choices would share by chance (M, M): they may choose among other rows."""
    found = [value for at, row in enumerate(jaccard) for value in row[at + 1 :]] or [row[0] for row in jaccard]
    least, most = (f"{value:.0%}" for value in (min(found, default=0.0), max(found, default=0.0)))
    return least if least == most else f"{least} to {most}"


def read_comparison(run: RunReader) -> dict[str, Any] | None:
    """Return compare.json of a run folder, or None where there is none, or it is about another pool than is staged.

    Raises:
        StoreError: it cannot be read.
    """
    found = read_json(run.path / COMPARE, fix="delete it and run adg compare again")
    return found if found is not None and found.get("pool_digest") == run.staged_digest() else None


FOLDER = "eval"
