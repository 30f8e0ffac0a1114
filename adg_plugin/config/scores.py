"""The settings from answers to a choice: vectors, score, bins, and how many rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adg_plugin.config.filters import Filters, OptionalFilters
from adg_plugin.config.sampling import Seeded
from adg_plugin.config.values import Budget, Float, Int, OptionalInt, Settings

ScoreForm = Literal["raw", "rank", "zscore", "residual"]
Subset = Literal["top", "middle", "bottom"]
Pooling = Literal["answer", "last_token", "skip_first", "surprisal", "reference"]


class VectorSettings(Settings):
    """How an answer becomes a vector."""

    pooling: Pooling = Field(
        "answer",
        description="An answer's vector: `answer`: mean over its tokens; `last_token`; `skip_first`: mean without the "
        "first; `surprisal`: mean weighted by -log p of each token; `reference`: as the authors' released code.",
    )
    layers: Int = Field(
        4,
        ge=1,
        description="How many of the last hidden states are averaged.",
        json_schema_extra={"fix": "use a whole number, 1 or more"},
    )
    keep_vectors: bool = Field(False, description="Store each answer's vector (float16) beside the Gram matrix.")


class ScoreSettings(Seeded):
    """How rows are scored, and which of them are taken."""

    budget: Budget = Field(10_000, description="Rows to select, or a fraction of the pool (0.2).")
    filters: OptionalFilters = Field(
        Filters(),
        description="Which rows are rejected, such as `{min_words: 3}`. Default: none.",
        json_schema_extra={"fix": "use a mapping, such as {min_words: 3, underspecified: true}"},
    )
    weight: Float = Field(
        0.4,
        ge=0,
        le=1,
        description="Weight of anisotropy; dispersion gets 1 - weight.",
        json_schema_extra={"fix": "use a number from 0 to 1"},
    )
    score: ScoreForm = Field(
        "raw",
        description="`raw`: weighted sum of the parts; `rank`, `zscore`: of scaled parts; `residual`: their product.",
    )
    bins: OptionalInt = Field(
        None,
        ge=1,
        description="Semantic bins. Default: one per ten rows, at most 1,000.",
        json_schema_extra={"fix": "use a whole number, 1 or more, or leave it out"},
    )
    subset: Subset = Field(
        "top", description="Which end of each bin is taken; `middle` and `bottom` are for ablations."
    )
