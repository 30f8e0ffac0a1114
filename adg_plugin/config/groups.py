"""Groups of settings: the model, how it is sampled, what its answers become, which rows are rejected and taken."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from adg_plugin.config.values import Budget, Dtype, Float, Int, OptionalFloat, OptionalInt, PathText, Settings

ScoreForm = Literal["raw", "rank", "zscore", "residual"]
Subset = Literal["top", "middle", "bottom"]
Pooling = Literal["answer", "last_token", "skip_first", "surprisal", "reference"]
_LANGUAGE = re.compile(r"[a-z]{2,3}")


class ModelSettings(Settings):
    """Which model is sampled from, in which numbers, and where."""

    model: PathText | None = Field(
        None,
        min_length=1,
        description="Backbone: folder, hub name, or `demo`. It should be the model that will be trained.",
    )
    revision: str | None = Field(None, description="Revision of the backbone on the hub.")
    trust_remote_code: bool = Field(False, description="Let transformers run code that comes with the model.")
    eos_token: str | None = Field(None, description="End-of-answer token, for a model that names none.")
    dtype: Dtype = Field(
        "auto",
        description="Dtype of the weights; `auto`: the checkpoint's, or in a trainer the precision of the training.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|mps|xpu(:\d+)?)$",
        description="`auto`, `cpu`, `cuda`, `cuda:1`, ...",
        json_schema_extra={"fix": "use auto, cpu, cuda, cuda:N, mps or xpu"},
    )
    load_in_4bit: bool = Field(False, description="Load the backbone in 4-bit (bitsandbytes).")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit number format.")
    bnb_4bit_use_double_quant: bool = Field(False, description="Quantise the quantisation constants too.")
    bnb_4bit_compute_dtype: Dtype = Field("auto", description="Type the 4-bit products are computed in.")
    batch_tokens: OptionalInt = Field(
        None, ge=1, description="Tokens held in the cache at once. Default: from free memory."
    )


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
    """How many answers each row gets, and from which distribution: vLLM and `generate` use the same names."""

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
    top_p: Float = Field(0.9, gt=0, le=1, description="Nucleus mass.")
    repetition_penalty: Float = Field(
        1.0,
        gt=0,
        le=10,
        description="Above 1, tokens of the prompt and of the answer so far become less likely.",
        json_schema_extra={"fix": "use a number above 0 and up to 10; 1 is off"},
    )
    max_new_tokens: Int = Field(256, ge=1, description="Token limit of each answer.")

    @field_validator("top_k")
    @classmethod
    def _leaves_a_choice(cls, value: int) -> int:
        if value == 1:
            raise PydanticCustomError("top_k", "1 leaves no choice")  # the fix that follows says why
        return value


class VectorSettings(Settings):
    """How an answer becomes a vector."""

    pooling: Pooling = Field(
        "answer",
        description="An answer's vector: `answer`: mean over its tokens; `last_token`; `skip_first`: mean without the "
        "first; `surprisal`: mean weighted by -log p of each token; `reference`: as the authors' released code.",
    )
    layers: Int = Field(4, ge=1, description="How many of the last hidden states are averaged.")
    keep_vectors: bool = Field(False, description="Store each answer's vector (float16) beside the Gram matrix.")


def _language_codes(value: Any) -> Any:
    codes = value if isinstance(value, list | tuple) else [value]
    if False in codes:
        raise PydanticCustomError("languages", "`no` without quotes is false in YAML: write 'no' for Norwegian")
    if not all(isinstance(code, str) and _LANGUAGE.fullmatch(code) for code in codes):
        raise PydanticCustomError("languages", "use a list of ISO 639 codes, such as [en, es]")
    return tuple(dict.fromkeys(codes))


class Filters(Settings):
    """Which rows are rejected, before or after they are sampled."""

    min_words: OptionalInt = Field(
        None,
        ge=1,
        description="Fewest words of the instruction with its input. A letter of a script without spaces (Chinese, "
        "Japanese, Thai, Lao, Khmer, Burmese, Tibetan) counts as a word; signs and punctuation by themselves do not.",
    )
    max_words: OptionalInt = Field(
        None,
        ge=1,
        description="Most words of the instruction with its input.",
        json_schema_extra={"fix": "use a whole number, min_words or more, or leave it out"},
    )
    min_answer_words: OptionalInt = Field(None, ge=1, description="Fewest words of the reference answer.")
    max_answer_words: OptionalInt = Field(
        None,
        ge=1,
        description="Most words of the reference answer.",
        json_schema_extra={"fix": "use a whole number, min_answer_words or more, or leave it out"},
    )
    near_duplicates: OptionalFloat = Field(
        None,
        ge=0.5,
        le=1,
        description="Of rows whose turns, inputs included, share at least this part of their word triples (Jaccard "
        "similarity, such as 0.8), the first of the pool stays; in Axolotl, of each part with a budget of its own. Two "
        "questions about one long input are close, too. About 5 kB of memory per row that stays. Extra `filters`.",
        json_schema_extra={"fix": "use a number from 0.5 to 1, such as 0.8, or leave it out"},
    )
    underspecified: bool = Field(
        False,
        description="Reject a row if more than half of its sampled answers ask for an input that is not there (`Please "
        "provide the text`), by a few English phrases. What it overlooks: [method](method.md#filters).",
    )
    languages: Annotated[tuple[str, ...], BeforeValidator(_language_codes)] = Field(
        (),
        description="Languages of the instruction that stay, such as `[en, es]`; one of fewer than 20 letters is taken "
        "together with its input. Rows whose language cannot be told (fewer than 20 letters even so, or an unsure "
        "detector) stay, too. Extra `filters`.",
    )
    min_agreement: OptionalFloat = Field(
        None,
        ge=-1,
        le=1,
        description="Least agreement of the reference response with the sampled answers: the cosine of its vector and "
        "the mean of theirs, from the same pass. What is usual differs between models: the report shows it.",
    )
    drop_least_agreeing: OptionalFloat = Field(
        None,
        gt=0,
        lt=1,
        description="Part of the rows to reject, those whose reference response agrees least with the sampled answers. "
        "Both need the reference responses to be fed while sampling: a run folder sampled without is sampled again.",
        json_schema_extra={"fix": "use a number between 0 and 1, such as 0.1, or leave it out"},
    )

    def on(self, *names: str) -> dict[str, Any]:
        """Return those of the named filters that reject rows: by default, all are off."""
        fields = type(self).model_fields
        return {name: value for name in names if (value := getattr(self, name)) != fields[name].default}

    @property
    def asks_agreement(self) -> bool:
        """Whether the reference responses are to be fed to the model, too."""
        return self.min_agreement is not None or self.drop_least_agreeing is not None

    @property
    def looks_at_answers(self) -> bool:
        """Whether a filter looks at the sampled answers."""
        return self.underspecified or self.asks_agreement

    @field_validator("max_words", "max_answer_words")
    @classmethod
    def _not_below_the_fewest(cls, value: int | None, info: ValidationInfo) -> int | None:
        fewest = info.data.get((info.field_name or "").replace("max", "min"))
        if value is not None and fewest is not None and value < fewest:
            raise PydanticCustomError("max_words", "use at least the fewest")
        return value


# None: `filters:` with nothing left below it.
OptionalFilters = Annotated[Filters, BeforeValidator(lambda value: {} if value is None else value)]


class ScoreSettings(Seeded):
    """How rows are scored, and which of them are taken."""

    budget: Budget = Field(10_000, description="Rows to select, or a fraction of the pool (0.2).")
    filters: OptionalFilters = Field(
        Filters(),
        description="Which rows are rejected, such as `{min_words: 3}`. Default: none.",
        json_schema_extra={"fix": "use a mapping, such as {min_words: 3, underspecified: true}"},
    )
    weight: Float = Field(0.4, ge=0, le=1, description="Weight of anisotropy; dispersion gets 1 - weight.")
    score: ScoreForm = Field(
        "raw",
        description="`raw`: weighted sum of the parts; `rank`, `zscore`: of scaled parts; `residual`: their product.",
    )
    bins: OptionalInt = Field(None, ge=1, description="Semantic bins. Default: one per ten rows, at most 1,000.")
    subset: Subset = Field(
        "top", description="Which end of each bin is taken; `middle` and `bottom` are for ablations."
    )
