"""The settings of how rows are chosen: ADG, or a selector to compare it with."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from adg_plugin.config.messages import listed, literal_fix
from adg_plugin.config.values import PathText, Settings
from adg_plugin.errors import ConfigError

BUILT_IN = ("adg", "random", "longest", "ifd", "superfiltering", "zip", "mig", "scar")
ENTRY_POINTS = "adg_plugin.selectors"  # the group under which other packages bring selectors


def known_methods() -> tuple[str, ...]:
    """Return the names of the selectors of this package, then of those that installed packages bring."""
    others = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return (*BUILT_IN, *sorted(others.difference(BUILT_IN)))


def unknown_method(name: str) -> str:
    """Return the sentence on a method that is not there."""
    return f"method is {name!r}: {literal_fix(name, listed(known_methods()))}"


def samples(method: str) -> bool:
    """Return whether the settings of sampled answers are about this method: they are ADG's."""
    return method == "adg"


def _known(value: Any) -> Any:
    if value not in BUILT_IN and value not in (known := known_methods()):
        raise PydanticKnownError("literal_error", {"expected": listed(known)})
    return value


Method = Annotated[str, BeforeValidator(_known)]


class MethodSettings(Settings):
    """Which selector chooses, and what the others than ADG need to know."""

    method: Method = Field(
        "adg",
        description="What chooses: `adg`, or, to compare with, `random`; `longest` (reference answers); `ifd`; "
        "`superfiltering`; `zip`; `mig`; `scar`. All but `adg` choose from the whole pool, without bins, and draw no "
        "answers. Or a selector that an installed package brings.",
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
        description="Model that labels the rows that have no labels, for `mig`: folder or hub name of a chat model, "
        "or `demo`. Default: none.",
    )
    quality_scorer: PathText | None = Field(
        None,
        min_length=1,
        description="Model that grades the quality of rows that have none, from 1 to 6, for `mig`: folder or hub name "
        "of a scorer such as `hkust-nlp/deita-quality-scorer`, or of a chat model, or `demo`. Default: none.",
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
    def _scores_given_answers(cls, value: str, info: ValidationInfo) -> str:
        if not samples(value) and (answers := info.data.get("answers")) is not None:
            message = f"answers is {answers!r}, and only ADG scores answers: use method: adg, or leave answers out"
            raise PydanticCustomError("given_answers", "{message}", {"message": message})
        return value

    def refuse_other_methods(self, what: str) -> None:
        """Raise a ConfigError where another method than ADG chooses; `what`, a clause, says what needs ADG."""
        if not samples(self.method):
            raise ConfigError([f"method is {self.method!r}: {what}; use method: adg"])
