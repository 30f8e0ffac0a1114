"""The types of the settings' values, lenient where users write one thing in several ways."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from adg_plugin.config.files import yaml_value
from adg_plugin.errors import redacted

_DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16", "float": "float32"}
# The names that Axolotl and LLaMA-Factory users write for the same row layouts.
_TYPE_NAMES = {
    "chat_template": "messages",
    "chat": "messages",
    "conversations": "sharegpt",
    "prompt-completion": "prompt_completion",
    "input_output": "prompt_completion",
}
_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number_expected", "use a number")
    return value


def _renamed(names: dict[str, str]) -> BeforeValidator:
    return BeforeValidator(lambda value: names.get(value, value) if isinstance(value, str) else value)


def _file_names(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(name, str) for name in names):
        raise PydanticCustomError("file_names", "use a file name, or a list of file names")
    return value


def _written(value: Any) -> Any:
    return [redacted(name) for name in value] if isinstance(value, list) else redacted(value) if value else value


def typed_value(text: str) -> Any:
    """Return what a value on a command line means: that of YAML, text where it has none, None for `none`."""
    if text.lower() == "none":
        return None
    try:
        return yaml_value(text)
    except ValueError:
        return text


def _names(value: Any) -> Any:
    """Return a mapping with a tuple of names at each key, where one name may stand by itself."""
    if not isinstance(value, dict):
        return value
    return {key: (names,) if isinstance(names, str) else names for key, names in value.items()}


def _budget(value: Any) -> Any:
    if isinstance(value, str):
        # YAML takes a number with an exponent and no point for text.
        value = float(value) if _EXPONENT.fullmatch(value) else typed_value(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("budget", "use a number of rows (10000) or a fraction of the pool (0.2)")
    if isinstance(value, int) and value < 1:
        raise PydanticCustomError("budget", "use 1 or more rows, or a fraction of the pool (0.2)")
    if isinstance(value, float) and not 0 < value <= 1:
        raise PydanticCustomError(
            "budget",
            "a number with a point is a fraction of the pool: use 0 < fraction <= 1, or a whole number of rows",
        )
    return value


class Settings(BaseModel):
    """Settings that belong together: a group of `ADGConfig`, or a mapping within it. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Int = Annotated[int, BeforeValidator(_no_bool)]
OptionalInt = Annotated[int | None, BeforeValidator(_no_bool)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
Float = Annotated[_Finite, BeforeValidator(_no_bool)]
OptionalFloat = Annotated[_Finite | None, BeforeValidator(_no_bool)]
# JSON is what is written, into config.json and the manifest: where rows come from, not how to get in.
_Written = PlainSerializer(_written, when_used="json")
PathText = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value), _Written]
FileNames = Annotated[str | list[str] | None, BeforeValidator(_file_names), _Written]
Roles = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_names)]
Budget = Annotated[int | float, BeforeValidator(_budget)]
Dtype = Annotated[Literal["auto", "bfloat16", "float16", "float32"], _renamed(_DTYPE_NAMES)]
RowType = Annotated[Literal["auto", "alpaca", "messages", "prompt_completion", "sharegpt"], _renamed(_TYPE_NAMES)]
