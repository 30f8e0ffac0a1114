"""How answers are sampled: the settings that vLLM and `generate` know by the same names."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from adg_plugin.config.values import Float, Int, Settings


class Seeded(Settings):
    """What is chosen at random, by the engines as by the selectors."""

    seed: Int = Field(
        0,
        ge=0,
        lt=2**63,
        description="Seed of every random choice.",
        json_schema_extra={"fix": "use a whole number from 0 to 2**63 - 1"},
    )


class SamplingSettings(Seeded):
    """How many answers each row gets, and from which distribution."""

    num_samples: Int = Field(
        5,
        ge=3,
        le=64,
        description="K, answers sampled per row. More give less noisy scores, at linear cost.",
        json_schema_extra={"fix": "use a whole number from 3 to 64; two answers span a single direction"},
    )
    temperature: Float = Field(
        1.4,
        gt=0,
        le=10,
        description="Sampling temperature.",
        json_schema_extra={"fix": "use a number above 0 and up to 10, such as 1.4"},
    )
    top_k: Int = Field(
        50,
        ge=0,
        description="Only the k likeliest tokens are sampled, as `generate` does by default; 0: all.",
        json_schema_extra={
            "fix": "use 2 or more, such as 50, or 0 for all tokens; with 1 all answers would be equal, and dispersion 0"
        },
    )
    top_p: Float = Field(
        0.9, gt=0, le=1, description="Nucleus mass.", json_schema_extra={"fix": "use a number above 0 and up to 1"}
    )
    repetition_penalty: Float = Field(
        1.0,
        gt=0,
        le=10,
        description="Above 1, tokens of the prompt and of the answer so far become less likely.",
        json_schema_extra={"fix": "use a number above 0 and up to 10; 1 is off"},
    )
    max_new_tokens: Int = Field(
        256, ge=1, description="Token limit of each answer.", json_schema_extra={"fix": "use a whole number, 1 or more"}
    )

    @field_validator("top_k")
    @classmethod
    def _leaves_a_choice(cls, value: int) -> int:
        if value == 1:
            raise PydanticCustomError("top_k", "1 leaves no choice")  # the fix that follows says why
        return value
