"""The settings of which rows are rejected before or after they are sampled. All filters are off unless named."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from adg_plugin.config.values import Float, OptionalInt, Settings

_LANGUAGE = re.compile(r"[a-z]{2,3}")
_WORDS_FIX: JsonDict = {"fix": "use a whole number, 1 or more, or leave it out"}


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
        json_schema_extra=_WORDS_FIX,
    )
    max_words: OptionalInt = Field(
        None,
        ge=1,
        description="Most words of the instruction with its input.",
        json_schema_extra={"fix": "use a whole number, min_words or more, or leave it out"},
    )
    min_answer_words: OptionalInt = Field(
        None, ge=1, description="Fewest words of the reference answer.", json_schema_extra=_WORDS_FIX
    )
    max_answer_words: OptionalInt = Field(
        None,
        ge=1,
        description="Most words of the reference answer.",
        json_schema_extra={"fix": "use a whole number, min_answer_words or more, or leave it out"},
    )
    near_duplicates: Float | None = Field(
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
    min_agreement: Float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Least agreement of the reference response with the sampled answers: the cosine of its vector and "
        "the mean of theirs, from the same pass. What is usual differs between models: the report shows it.",
        json_schema_extra={"fix": "use a number from -1 to 1, or leave it out"},
    )
    drop_least_agreeing: Float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Part of the rows to reject, those whose reference response agrees least with the sampled answers. "
        "Both need the reference responses to be fed while sampling: a run folder sampled without is sampled again.",
        json_schema_extra={"fix": "use a number between 0 and 1, such as 0.1, or leave it out"},
    )

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


def _none_at_all(value: Any) -> Any:
    return {} if value is None else value  # `filters:` with nothing left below it


OptionalFilters = Annotated[Filters, BeforeValidator(_none_at_all)]
