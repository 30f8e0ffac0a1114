"""The settings of how rows are chosen: ADG, or a selector to compare it with."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from adg_plugin.config.values import PathText
from adg_plugin.errors import ConfigError

Method = Literal["adg", "random", "longest", "ifd", "superfiltering", "zip", "mig", "scar"]


class MethodSettings(BaseModel):
    """Which selector chooses, and what the others than ADG need to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = Field(
        "adg",
        description="What chooses: `adg`, or, to compare with, `random`; `longest` (reference answers); `ifd`; "
        "`superfiltering`; `zip`; `mig`; `scar`. All but `adg` choose from the whole pool, without bins, and draw no "
        "answers.",
    )
    small_model: PathText = Field(
        "gpt2", min_length=1, description="Model of `superfiltering`: folder, hub name, or `demo`."
    )
    field_labels: str = Field(
        "labels",
        min_length=1,
        description="Column of a row's labels for `mig`: a list of texts or whole numbers, also as JSON text, or one "
        "text with commas. Where no row has any and there is no `tagger`, bins of this run folder's answers serve as "
        "labels.",
    )
    field_quality: str = Field(
        "quality",
        min_length=1,
        description="Column of a row's quality for `mig`, a number of 0 or more; where a row has none, that of "
        "`quality_scorer`, or 1.",
    )
    tagger: PathText | None = Field(
        None,
        min_length=1,
        description="Model that `mig` asks for the labels of rows that have none: folder or hub name of a chat model, "
        "or `demo`. Default: none is asked.",
    )
    quality_scorer: PathText | None = Field(
        None,
        min_length=1,
        description="Model that `mig` asks for a quality from 1 to 6 of rows that have none: folder or hub name of a "
        "scorer such as `hkust-nlp/deita-quality-scorer`, or of a chat model, or `demo`. Default: none is asked.",
    )
    label_vectors: PathText | None = Field(
        None,
        min_length=1,
        description="Parquet or JSONL file with columns `label` and `vector`, from any embedding model: `mig` links "
        "labels with a cosine above 0.9. Default: none are linked.",
    )
    scar_model: PathText = Field(
        "lizhuang144/scar-roberta-base", min_length=1, description="Ranker of `scar`: folder or hub name."
    )

    @field_validator("method")
    @classmethod
    def _scores_given_answers(cls, value: Method, info: ValidationInfo) -> Method:
        if value != "adg" and (answers := info.data.get("answers")) is not None:
            message = f"answers is {answers!r}, and only ADG scores answers: use method: adg, or leave answers out"
            raise PydanticCustomError("given_answers", "{message}", {"message": message})
        return value

    def refuse_other_methods(self, what: str) -> None:
        """Validate that ADG chooses.

        Args:
            what: that cannot be had otherwise, such as "`adg stability` asks how much the draws decide".

        Raises:
            ConfigError: another method does.
        """
        if self.method != "adg":
            raise ConfigError([f"method is {self.method!r}: {what}; use method: adg"])
