"""Rows whose reference response is far from the sampled answers: rejected by vectors of the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from adg_plugin.config.filters import Filters
from adg_plugin.config.schema import ADGConfig

DISAGREES = "low_agreement"
AGREEMENT_SETTINGS = ("min_agreement", "drop_least_agreeing")

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class ReferenceResponses:
    """Turns reference responses into at most `tokens` tokens (`max_new_tokens`: like is compared with like; 0: off)."""

    tokenizer: Any
    tokens: int

    @classmethod
    def of(cls, config: ADGConfig, tokenizer: Any) -> ReferenceResponses:
        """Return what the settings ask for."""
        return cls(tokenizer, config.max_new_tokens if config.filters.asks_agreement else 0)

    def ids(self, text: str) -> npt.NDArray[np.int32] | None:
        """Return the tokens (T,) of a reference response; None where there is none, or nobody asks."""
        if not self.tokens or not text.strip():
            return None
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: self.tokens]
        return np.array(ids, dtype=np.int32) if len(ids) else None


def least_agreeing(agreement: Floats, filters: Filters) -> npt.NDArray[np.bool_]:
    """Return which rows (N,) are rejected by their agreement (N,), a cosine in [-1, 1]; NaN, no response, never is."""
    known = np.flatnonzero(~np.isnan(agreement))
    rejected = np.zeros(len(agreement), dtype=bool)
    if filters.min_agreement is not None:
        rejected[known] = agreement[known] < filters.min_agreement
    if filters.drop_least_agreeing is not None:
        lowest = known[np.argsort(agreement[known], kind="stable")]
        # In decimal, as written: in binary 0.29 * 100 falls below 29.
        count = int(Decimal(str(filters.drop_least_agreeing)) * len(known))
        rejected[lowest[:count]] = True
    return rejected


def details(agreement: Floats, filters: Filters) -> Sequence[str]:
    """Return a sentence for each rejected row."""
    asked = [
        f"filters.{name} is {value}" for name in AGREEMENT_SETTINGS if (value := getattr(filters, name)) is not None
    ]
    return [f"agreement {value:.4f}, {', '.join(asked)}" for value in agreement]
