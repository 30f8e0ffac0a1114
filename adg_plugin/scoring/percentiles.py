"""Percentiles of a column."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def percentiles(values: npt.NDArray[np.floating]) -> dict[str, float]:
    """Return the 5, 50 and 95 % points of values that are there; without any, nothing."""
    known = values[~np.isnan(values)].astype(np.float64)
    return {f"p{p}": float(np.percentile(known, p)) for p in (5, 50, 95)} if len(known) else {}
