"""One schema for the `adg:` block of a YAML, the command line and Python. Every default stands here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

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


def _budget(value: Any) -> Any:
    if isinstance(value, str):
        value = yaml.safe_load(value)
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

    path: str = Field(min_length=1, description="File, folder, Hugging Face data set name, or `demo`.")
    type: Annotated[RowType, BeforeValidator(_canonical_type)] = Field(
        "auto", description="Row layout; `auto` looks at the columns."
    )
    ds_type: Literal["json", "csv", "parquet", "arrow"] | None = Field(
        None, description="File format, where the name does not tell."
    )
    name: str | None = Field(None, description="Configuration of a Hugging Face data set.")
    split: str = Field("train", description="Split of a Hugging Face data set.")
    revision: str | None = Field(None, description="Revision of a Hugging Face data set.")
    data_files: str | list[str] | None = Field(None, description="Files within the data set.")
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


class ADGConfig(_Schema):
    """Settings of one selection. Defaults are the paper's (arXiv 2604.10448) unless the text says otherwise."""

    budget: Annotated[int | float, BeforeValidator(_budget)] = Field(
        10_000, description="Rows to select, or a fraction of the pool (0.2)."
    )
    model: str | None = Field(
        None, description="Backbone: folder, hub name, or `demo`. It should be the model that will be trained."
    )
    revision: str | None = Field(None, description="Revision of the backbone on the hub.")
    trust_remote_code: bool = Field(False, description="Let transformers run code that comes with the model.")
    datasets: tuple[DatasetSpec, ...] = Field((), description="The pool: a list of paths or of mappings with `path`.")
    output_dir: str | None = Field(None, description="Run folder. Default: `runs/NAME-OF-THE-CONFIG`.")

    num_samples: Int = Field(
        5,
        ge=3,
        le=64,
        description="K, answers drawn per row. More: steadier scores, linear cost.",
        json_schema_extra={"fix": "use 3 to 64; two answers span a single direction"},
    )
    temperature: Float = Field(
        1.4,
        gt=0,
        le=10,
        description="Sampling temperature.",
        json_schema_extra={"fix": "use a number above 0, such as 1.4"},
    )
    top_p: Float = Field(
        0.9, gt=0, le=1, description="Nucleus mass.", json_schema_extra={"fix": "use a number above 0 and up to 1"}
    )
    max_new_tokens: Int = Field(
        256, ge=1, description="Token limit of each answer.", json_schema_extra={"fix": "use 1 or more"}
    )
    seed: Int = Field(
        0,
        ge=0,
        lt=2**63,
        description="Seed of every random choice.",
        json_schema_extra={"fix": "use a whole number, 0 or more"},
    )

    template: str = Field(
        "auto",
        min_length=1,
        description="`chat` (the tokenizer's), `alpaca`, `chatml`, `raw`, a `.jinja` file; `auto`: chat, else alpaca.",
    )
    max_prompt_tokens: Int = Field(
        1024,
        ge=1,
        description="Longer prompts are rejected, never cut silently.",
        json_schema_extra={"fix": "use 1 or more"},
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
        json_schema_extra={"fix": "use 1 or more"},
    )
    weight: Float = Field(
        0.4,
        ge=0,
        le=1,
        description="Weight of anisotropy; dispersion has the rest.",
        json_schema_extra={"fix": "use 0 to 1"},
    )
    score: ScoreForm = Field(
        "raw",
        description="`raw`: weighted sum of the parts; `rank`, `zscore`: of scaled parts; `residual`: their product.",
    )
    bins: Annotated[int | None, BeforeValidator(_no_bool)] = Field(
        None,
        ge=1,
        description="Semantic bins. Default: one per ten rows, at most 1,000.",
        json_schema_extra={"fix": "use 1 or more, or leave it out"},
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
        json_schema_extra={"fix": "use 1 or more, or leave it out"},
    )
    keep_vectors: bool = Field(False, description="Store each answer's vector (float16) beside the Gram matrix.")

    @model_validator(mode="before")
    @classmethod
    def _datasets_as_mappings(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("datasets") is not None:
            entries = data["datasets"]
            entries = entries if isinstance(entries, list | tuple) else [entries]
            entries = [{"path": str(e)} if isinstance(e, str | Path) else e for e in entries]
            return {**data, "datasets": tuple(entries)}
        return data

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
            problems = [_sentence(detail, data, prefix) for detail in err.errors()]
            raise ConfigError(problems, source=source) from None

    def updated(self, **changes: Any) -> ADGConfig:
        """Return a copy with `changes`, checked again."""
        return self.parse({**self.model_dump(exclude_unset=True), **changes})


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    return list((DatasetSpec if location and location[0] == "datasets" else ADGConfig).model_fields)


def _sentence(error: ErrorDetails, data: Mapping[str, Any], prefix: str) -> str:
    location = tuple(part for part in error["loc"] if not (isinstance(part, str) and part in ("int", "float")))
    key = prefix + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).removeprefix(".")
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), _known_keys(location[:-1]), n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(_known_keys(location[:-1]))}"
        return f"{key} is not a setting: {hint}"
    if error["type"] == "missing":
        return f"{key} is missing: set it"
    return f"{key} is {error['input']!r}: {_fix(error, location)}"


def _fix(error: ErrorDetails, location: tuple[int | str, ...]) -> str:
    if len(location) == 1 and isinstance(location[0], str) and error["type"] not in ("budget",):
        extra = ADGConfig.model_fields[location[0]].json_schema_extra
        if isinstance(extra, dict) and "fix" in extra:
            return str(extra["fix"])
    if error["type"] == "literal_error":
        expected = error.get("ctx", {}).get("expected", "")
        choices = [c.strip().strip("'") for c in expected.replace(" or ", ", ").split(",")]
        close = difflib.get_close_matches(str(error["input"]), choices, n=1)
        return f"use {expected}" + (f"; did you mean `{close[0]}`?" if close else "")
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "use a path, or a mapping with `path`"
    message = error["msg"]
    return message[0].lower() + message[1:]


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, which plain YAML settles in silence for the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key_node.value}` is given twice: keep one", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, not a mapping, or a key given twice.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            data = yaml.load(file, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError([f"no such file: give the path of a YAML file (in {Path.cwd()})"], source=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError([f"not valid YAML: {err}"], source=str(path)) from None
    if not isinstance(data, dict):
        raise ConfigError([f"holds {type(data).__name__}, not a mapping: write `key: value` lines"], source=str(path))
    return data


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
    nested = isinstance(data.get("adg"), dict)
    block: dict[str, Any] = dict(data["adg"]) if nested else dict(data)
    problems = []
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key:
            problems.append(f"--set {override}: write key=value")
            continue
        parts = key.removeprefix("adg.").split(".")
        try:
            _assign(block, parts, yaml.safe_load(text))
        except (KeyError, IndexError, ValueError, TypeError, yaml.YAMLError) as err:
            problems.append(f"--set {override}: no such place in the config ({err})")
    if problems:
        raise ConfigError(problems)
    block.update(extra)
    return ADGConfig.parse(block, source=str(path), prefix="adg." if nested else "")


def _assign(block: Any, parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        if isinstance(block, list):
            block = block[int(part)]
        else:
            block = block.setdefault(part, {})
    if isinstance(block, list):
        block[int(parts[-1])] = value
    else:
        block[parts[-1]] = value
