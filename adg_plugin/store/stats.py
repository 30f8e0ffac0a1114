"""How long a run stats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def seconds_of(stats: Mapping[str, Any]) -> float:
    """Return the seconds of drawing or measuring, and of embedding or grading after it."""
    parts = (stats, stats.get("embedding", {}), stats.get("rating", {}))
    return sum(float(part.get("seconds", 0.0)) for part in parts)
