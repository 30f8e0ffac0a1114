"""One schema for the `adg:` block of a YAML, the command line and Python. Every default stands here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from adg_plugin.config_file import load_yaml, override
from adg_plugin.errors import ConfigError

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
RowType = Literal["auto", "alpaca", "messages", "prompt_completion", "sharegpt"]
ScoreForm = Literal["raw", "rank", "zscore", "residual"]
Subset = Literal["top", "middle", "bottom"]
Pooling = Literal["answer", "reference"]

_DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16", "float": "float32"}
# The names that Axolotl and LLaMA-Factory users write for the same row layouts.
_TYPE_NAMES = {
    "chat_template": "messages",
    "chat": "messages",
    "conversations": "sharegpt",
    "prompt-completion": "prompt_completion",
    "input_output": "prompt_completion",
}
_FIXES = {  # by pydantic's name of the error, for settings that bring no fix of their own
    "string_type": "use text; in YAML, with quotes around it",
    "string_too_short": "use text of at least one character, or leave it out",
    "too_short": "use text of at least one character, or leave it out",
    "bool_type": "use true or false",
    "bool_parsing": "use true or false",
    "tuple_type": "use a list of paths, or of mappings with `path`",
    "model_type": "use a path, or a mapping with `path`",
    "model_attributes_type": "use a path, or a mapping with `path`",
    "dict_type": "use a mapping",
}


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number_expected", "use a number")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]


def _long_dtype_name(value: Any) -> Any:
    return _DTYPE_NAMES.get(value, value) if isinstance(value, str) else value


def _canonical_type(value: Any) -> Any:
    if isinstance(value, str):
        return _TYPE_NAMES.get(value, value)
    return value


def _path_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


PathText = Annotated[str, BeforeValidator(_path_text)]


def _file_names(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(name, str) for name in names):
        raise PydanticCustomError("file_names", "use a file name, or a list of file names")
    return value


def _number(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


def _budget(value: Any) -> Any:
    if isinstance(value, str):
        value = _number(value)
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


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSpec(_Schema):
    """Where rows come from, and which columns hold what."""

    path: PathText = Field(min_length=1, description="File, folder, Hugging Face data set name, or `demo`.")
    type: Annotated[RowType, BeforeValidator(_canonical_type)] = Field(
        "auto", description="Row layout; `auto` looks at the columns."
    )
    ds_type: Literal["json", "csv", "parquet", "arrow"] | None = Field(
        None, description="File format, where the name does not tell."
    )
    name: str | None = Field(None, description="Configuration of a Hugging Face data set.")
    split: str = Field("train", description="Split of a Hugging Face data set.")
    revision: str | None = Field(None, description="Revision of a Hugging Face data set.")
    data_files: Annotated[str | list[str] | None, BeforeValidator(_file_names)] = Field(
        None, description="Files within the data set."
    )
    field_id: str = Field(
        "id", description="Column of the row's own id; without it (or with ''), a hash of the content."
    )
    field_instruction: str = Field("instruction", description="Column of the instruction (alpaca).")
    field_input: str = Field("input", description="Column of the input (alpaca).")
    field_output: str = Field("output", description="Column of the reference answer (alpaca).")
    field_system: str = Field("system", description="Column of the system prompt (alpaca, sharegpt).")
    field_prompt: str = Field("prompt", description="Column of the prompt.")
    field_completion: str = Field("completion", description="Column of the completion.")
    field_messages: str | None = Field(None, description="Column of the turns; default `messages` or `conversations`.")
    field_tools: str = Field("tools", description="Column of the tools that the chat template gets.")
    message_property_mappings: dict[str, str] = Field(
        default_factory=dict, description="Names of `role` and `content` within a turn, where they differ."
    )


def _with_dataset_mappings(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with every data set as a mapping, also where it is a path or stands alone."""
    entries = data.get("datasets")
    if entries is None:
        return dict(data)
    entries = entries if isinstance(entries, list | tuple) else [entries]
    return {**data, "datasets": [{"path": e} if isinstance(e, str | Path) else e for e in entries]}


class ADGConfig(_Schema):
    """Settings of one selection. Defaults are the paper's (arXiv 2604.10448) unless the text says otherwise."""

    budget: Annotated[int | float, BeforeValidator(_budget)] = Field(
        10_000, description="Rows to select, or a fraction of the pool (0.2)."
    )
    model: PathText | None = Field(
        None,
        min_length=1,
        description="Backbone: folder, hub name, or `demo`. It should be the model that will be trained.",
    )
    revision: str | None = Field(None, description="Revision of the backbone on the hub.")
    trust_remote_code: bool = Field(False, description="Let transformers run code that comes with the model.")
    datasets: tuple[DatasetSpec, ...] = Field((), description="The pool: a list of paths or of mappings with `path`.")
    budget_per_dataset: tuple[Annotated[int | float, BeforeValidator(_budget)], ...] | None = Field(
        None,
        description="In Axolotl: a budget for each entry of `datasets`, in their order; each is selected by itself.",
        json_schema_extra={"fix": "use a list, a budget for each entry of Axolotl's datasets; elsewhere leave it out"},
    )
    output_dir: PathText | None = Field(
        None, min_length=1, description="Run folder. Default: `runs/NAME-OF-THE-CONFIG`."
    )

    num_samples: Int = Field(
        5,
        ge=3,
        le=64,
        description="K, answers drawn per row. More: steadier scores, linear cost.",
        json_schema_extra={"fix": "use a whole number from 3 to 64; two answers span a single direction"},
    )
    temperature: Float = Field(
        1.4,
        gt=0,
        le=10,
        description="Sampling temperature.",
        json_schema_extra={"fix": "use a number above 0 and up to 10, such as 1.4"},
    )
    top_p: Float = Field(
        0.9, gt=0, le=1, description="Nucleus mass.", json_schema_extra={"fix": "use a number above 0 and up to 1"}
    )
    max_new_tokens: Int = Field(
        256, ge=1, description="Token limit of each answer.", json_schema_extra={"fix": "use a whole number, 1 or more"}
    )
    seed: Int = Field(
        0,
        ge=0,
        lt=2**63,
        description="Seed of every random choice.",
        json_schema_extra={"fix": "use a whole number from 0 to 2**63 - 1"},
    )

    template: PathText = Field(
        "auto",
        min_length=1,
        description="`chat` (the tokenizer's), `alpaca`, `chatml`, `raw`, a `.jinja` file; `auto`: chat, else alpaca.",
    )
    max_prompt_tokens: Int = Field(
        1024,
        ge=1,
        description="Longer prompts are rejected, never cut silently.",
        json_schema_extra={"fix": "use a whole number, 1 or more"},
    )
    truncate: bool = Field(False, description="Cut the instruction of too long prompts instead of rejecting the row.")
    eos_token: str | None = Field(None, description="End-of-answer token, for a model that names none.")

    pooling: Pooling = Field(
        "answer", description="`answer`: mean over the answer's tokens; `reference`: as the authors' released code."
    )
    layers: Int = Field(
        4,
        ge=1,
        description="How many of the last hidden states are averaged.",
        json_schema_extra={"fix": "use a whole number, 1 or more"},
    )
    weight: Float = Field(
        0.4,
        ge=0,
        le=1,
        description="Weight of anisotropy; dispersion has the rest.",
        json_schema_extra={"fix": "use a number from 0 to 1"},
    )
    score: ScoreForm = Field(
        "raw",
        description="`raw`: weighted sum of the parts; `rank`, `zscore`: of scaled parts; `residual`: their product.",
    )
    bins: Annotated[int | None, BeforeValidator(_no_bool)] = Field(
        None,
        ge=1,
        description="Semantic bins. Default: one per ten rows, at most 1,000.",
        json_schema_extra={"fix": "use a whole number, 1 or more, or leave it out"},
    )
    subset: Subset = Field(
        "top", description="Which end of each bin is taken; `middle` and `bottom` are for ablations."
    )

    engine: Literal["hf"] = Field(
        "hf", description="What samples: `hf` is transformers, answers and vectors in one pass."
    )
    dtype: Annotated[Dtype, BeforeValidator(_long_dtype_name)] = Field(
        "auto", description="Weights' type; `auto` takes the checkpoint's."
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
    bnb_4bit_compute_dtype: Annotated[Dtype, BeforeValidator(_long_dtype_name)] = Field(
        "auto", description="Type the 4-bit products are computed in."
    )
    batch_tokens: Int | None = Field(
        None,
        ge=1,
        description="Tokens held in the cache at once. Default: from free memory.",
        json_schema_extra={"fix": "use a whole number, 1 or more, or leave it out"},
    )
    keep_vectors: bool = Field(False, description="Store each answer's vector (float16) beside the Gram matrix.")

    @field_validator("budget_per_dataset")
    @classmethod
    def _only_in_axolotl(cls, value: Any, info: ValidationInfo) -> Any:
        # Within Axolotl the pool is Axolotl's own, so a pool here means another command, which has one budget.
        if value is not None and info.data.get("datasets"):
            raise PydanticCustomError("only_axolotl", "only Axolotl selects from each by itself")
        return value

    @model_validator(mode="before")
    @classmethod
    def _datasets_as_mappings(cls, data: Any) -> Any:
        return _with_dataset_mappings(data) if isinstance(data, Mapping) else data

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, source: str = "", prefix: str = "") -> ADGConfig:
        """Return the checked configuration.

        Args:
            data: keys and values of the schema.
            source: file name for error texts.
            prefix: put before key names in error texts, `adg.` for a block in a larger file.

        Raises:
            ConfigError: with every problem found, each naming key, value and fix.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as err:
            problems = [_sentence(detail, prefix) for detail in err.errors()]
            raise ConfigError(problems, source=source) from None

    def updated(self, **changes: Any) -> ADGConfig:
        """Return a copy with `changes`, checked again."""
        return self.parse({**self.model_dump(exclude_unset=True), **changes})


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    return list((DatasetSpec if location and location[0] == "datasets" else ADGConfig).model_fields)


def _sentence(error: ErrorDetails, prefix: str) -> str:
    location = error["loc"]
    key = prefix + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).removeprefix(".")
    if error["type"] in ("extra_forbidden", "invalid_key"):
        close = difflib.get_close_matches(str(location[-1]), _known_keys(location[:-1]), n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(_known_keys(location[:-1]))}"
        return f"{key} is not a setting: {hint}"
    if error["type"] == "missing":
        return f"{key} is missing: set it"
    return f"{key} is {error['input']!r}: {_fix(error, location)}"


def _fix(error: ErrorDetails, location: tuple[int | str, ...]) -> str:
    if len(location) == 1 and isinstance(location[0], str):
        extra = ADGConfig.model_fields[location[0]].json_schema_extra
        if isinstance(extra, dict) and "fix" in extra:
            return str(extra["fix"])
    if error["type"] == "literal_error":
        expected = error.get("ctx", {}).get("expected", "")
        choices = [c.strip().strip("'") for c in expected.replace(" or ", ", ").split(",")]
        close = difflib.get_close_matches(str(error["input"]), choices, n=1)
        return f"use {expected}" + (f"; did you mean `{close[0]}`?" if close else "")
    message = error["msg"]
    return _FIXES.get(error["type"]) or message[0].lower() + message[1:]


def load_config(path: str | Path, overrides: list[str] | None = None, **extra: Any) -> ADGConfig:
    """Return the checked configuration of a YAML file, flat or in an `adg:` block.

    Args:
        path: YAML file.
        overrides: `key=value` strings; values are YAML, keys flat (`budget`) or dotted (`datasets.0.path`).
        extra: values that win over both.

    Raises:
        ConfigError: with every problem found.
    """
    data = load_yaml(path)
    is_block = "adg" in data
    found = (data["adg"] or {}) if is_block else data
    if not isinstance(found, dict):
        raise ConfigError([f"adg is {found!r}: write `key: value` lines under it"], source=str(path))
    block = _with_dataset_mappings(found)
    problems = []
    for text in overrides or []:
        try:
            block = override(block, text)
        except ValueError as err:
            problems.append(f"--set {text}: {err}")
    try:
        config = ADGConfig.parse({**block, **extra}, prefix="adg." if is_block else "")
    except ConfigError as err:
        problems += err.problems
    if problems:
        raise ConfigError(problems, source=str(path))
    return config
