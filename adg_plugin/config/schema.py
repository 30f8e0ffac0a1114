"""One schema for the `adg:` block of a YAML, the command line and Python. Every default stands here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from adg_plugin.config.engines import ScaleSettings
from adg_plugin.config.files import load_yaml, override
from adg_plugin.config.filters import Filters, OptionalFilters
from adg_plugin.config.messages import sentence
from adg_plugin.config.methods import MethodSettings, samples
from adg_plugin.config.sampling import SamplingSettings
from adg_plugin.config.values import Budget, Dtype, FileNames, Float, Int, OptionalInt, PathText, RowType
from adg_plugin.errors import ConfigError

ScoreForm = Literal["raw", "rank", "zscore", "residual"]
Subset = Literal["top", "middle", "bottom"]
Pooling = Literal["answer", "last_token", "skip_first", "surprisal", "reference"]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSpec(_Schema):
    """Where rows come from, and which columns hold what."""

    path: PathText = Field(min_length=1, description="File, folder, Hugging Face data set name, `demo`, or `memory`.")
    type: RowType = Field("auto", description="Row layout; `auto` looks at the columns.")
    ds_type: Literal["json", "csv", "parquet", "arrow"] | None = Field(
        None, description="File format, where the name does not tell."
    )
    name: str | None = Field(None, description="Configuration of a Hugging Face data set.")
    split: str = Field("train", description="Split of a Hugging Face data set.")
    revision: str | None = Field(None, description="Revision of a Hugging Face data set.")
    data_files: FileNames = Field(None, description="Files within the data set.")
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


# What was done before a setting existed: the settings that older versions stored do not name it.
OLDER = {"top_k": 0, "repetition_penalty": 1.0}

IN_MEMORY = DatasetSpec(path="memory")  # of rows that no file holds; `path: memory` names their columns


def _with_dataset_mappings(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with every data set as a mapping, also where it is a path or stands alone."""
    entries = data.get("datasets")
    if entries is None:
        return dict(data)
    entries = entries if isinstance(entries, list | tuple) else [entries]
    return {**data, "datasets": [{"path": e} if isinstance(e, str | Path) else e for e in entries]}


class ADGConfig(MethodSettings, SamplingSettings, ScaleSettings):
    """Settings of one selection. Defaults are the paper's (arXiv 2604.10448) unless the text says otherwise."""

    budget: Budget = Field(10_000, description="Rows to select, or a fraction of the pool (0.2).")
    model: PathText | None = Field(
        None,
        min_length=1,
        description="Backbone: folder, hub name, or `demo`. It should be the model that will be trained.",
    )
    revision: str | None = Field(None, description="Revision of the backbone on the hub.")
    trust_remote_code: bool = Field(False, description="Let transformers run code that comes with the model.")
    datasets: tuple[DatasetSpec, ...] = Field((), description="The pool: a list of paths or of mappings with `path`.")
    budget_per_dataset: tuple[Budget, ...] | None = Field(
        None,
        description="In Axolotl: a budget for each entry of `datasets`, in their order; each is selected by itself.",
        json_schema_extra={"fix": "use a list, a budget for each entry of Axolotl's datasets; elsewhere leave it out"},
    )
    output_dir: PathText | None = Field(
        None, min_length=1, description="Run folder. Default: `runs/NAME-OF-THE-CONFIG`."
    )
    filters: OptionalFilters = Field(
        Filters(),
        description="Which rows are rejected, such as `{min_words: 3}`. Default: none.",
        json_schema_extra={"fix": "use a mapping, such as {min_words: 3, underspecified: true}"},
    )

    template: PathText = Field(
        "auto",
        min_length=1,
        description="`chat` (the tokenizer's), `alpaca`, `alpaca-paper` (no line break after `### Response:`), "
        "`chatml`, `raw`, a `.jinja` file; `auto`: chat, else alpaca.",
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
    batch_tokens: Int | None = Field(
        None,
        ge=1,
        description="Tokens held in the cache at once. Default: from free memory.",
        json_schema_extra={"fix": "use a whole number, 1 or more, or leave it out"},
    )
    keep_vectors: bool = Field(False, description="Store each answer's vector (float16) beside the Gram matrix.")

    @field_validator("load_in_4bit")
    @classmethod
    def _not_by_a_server(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("engine") == "vllm-server":
            raise PydanticCustomError(
                "four_bit", "a server cannot be asked how it holds its weights: use engine: hf, or engine: vllm"
            )
        return value

    @field_validator("pooling")
    @classmethod
    def _pools_own_answers(cls, value: Pooling, info: ValidationInfo) -> Pooling:
        if value == "reference" and getattr(info.data.get("filters"), "asks_agreement", False):
            raise PydanticCustomError(
                "agreement", "use another pooling, or leave filters.min_agreement and filters.drop_least_agreeing out"
            )
        return value

    @field_validator("filters", "subset")
    @classmethod
    def _only_for_adg(cls, value: Any, info: ValidationInfo) -> Any:
        method = info.data.get("method", "adg")
        if not samples(method) and (value in ("middle", "bottom") or getattr(value, "looks_at_answers", False)):
            named = "it" if info.field_name == "subset" else "min_agreement, drop_least_agreeing and underspecified"
            message = f"leave {named} out, or use method: adg: {method} draws no answers"
            raise PydanticCustomError("only_for_adg", "{message}", {"message": message})
        return value

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
            source: file name for error texts.
            prefix: put before key names in error texts, `adg.` for a block in a larger file.

        Raises:
            ConfigError: with every problem found, each naming key, value and fix.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as err:
            nested: dict[str, type[BaseModel]] = {"datasets": DatasetSpec, "filters": Filters}
            problems = [sentence(detail, prefix, cls, nested) for detail in err.errors()]
            raise ConfigError(problems, source=source) from None

    @classmethod
    def of_run(cls, stored: Mapping[str, Any], *, source: str = "") -> ADGConfig:
        """Return the settings stored in a run folder, also by an older version; arguments and errors of `parse`."""
        known = {**OLDER, **stored}
        if not samples(known.get("method", "adg")) and known.get("filters"):
            # Once it looked at instructions, whatever the method; what it rejected is in the run folder.
            known["filters"] = {**known["filters"], "underspecified": False}
        return cls.parse(known, source=source)

    def updated(self, **changes: Any) -> ADGConfig:
        """Return a copy with `changes`, checked again."""
        return self.parse({**self.model_dump(exclude_unset=True), **changes})


def load_config(path: str | Path, overrides: list[str] | None = None, **extra: Any) -> ADGConfig:
    """Return the checked configuration of a YAML file, flat or in an `adg:` block.

    Args:
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
