"""What a method decided about the rows it could choose from: one form for all methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.store import Rejection

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Decision:
    """A choice, as the run folder keeps it.

    Attributes:
        table: one row per candidate, by ascending id: at least `id`, `score`, `chosen`, `reason`.
        ids: of the chosen rows, the best first.
        score: how the scores came out, for the manifest.
        rejections: rows that this method cannot choose, and why.
        bins: how many there were; None where the method knows none.
        answer_tokens: sampled for it.
    """

    table: pa.Table
    ids: tuple[str, ...]
    score: dict[str, Any]
    warnings: tuple[str, ...]
    rejections: tuple[Rejection, ...] = field(default=())
    bins: int | None = None
    answer_tokens: int = 0

    @classmethod
    def none(cls, rejections: Sequence[Rejection]) -> Decision:
        """Return the decision where no row can be chosen."""
        return cls(pa.table({"id": pa.array([], pa.string())}), (), {}, (), tuple(rejections))
