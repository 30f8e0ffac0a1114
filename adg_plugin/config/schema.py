"""One schema for the `adg:` block of a YAML, the command line and Python. Every default stands here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from adg_plugin.config.engines import EngineSettings
from adg_plugin.config.files import load_yaml, override
from adg_plugin.config.groups import Filters, ModelSettings, Pooling, SamplingSettings, ScoreSettings, VectorSettings
from adg_plugin.config.messages import sentence
from adg_plugin.config.methods import MethodSettings, samples
from adg_plugin.config.values import Budget, FileNames, Int, PathText, Roles, RowType, Settings
from adg_plugin.errors import ConfigError


class DatasetSpec(Settings):
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
    field_system: str = Field(
        "system", description="Column of the system prompt of rows whose turns do not begin with one."
    )
    field_prompt: str = Field("prompt", description="Column of the prompt.")
    field_completion: str = Field("completion", description="Column of the completion.")
    field_history: str = Field(
        "history", description="Column of earlier turns, pairs of instruction and response (alpaca)."
    )
    field_messages: str | None = Field(None, description="Column of the turns; default `messages` or `conversations`.")
    field_tools: str = Field("tools", description="Column of the tools that the chat template gets.")
    roles: Roles = Field(
        default_factory=dict,
        description="Names of roles that this package does not know, such as `{user: [customer], assistant: [agent]}`.",
    )
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


# The last group is checked first: a validator sees the settings of those behind its own.
class ADGConfig(ModelSettings, VectorSettings, ScoreSettings, SamplingSettings, MethodSettings, EngineSettings):
    """Settings of one selection. Defaults are the paper's (arXiv 2604.10448) unless the text says otherwise.

    Its groups are views of it: what needs only some settings takes the group that has them, such as `SamplingSettings`.
    """

    datasets: tuple[DatasetSpec, ...] = Field((), description="The pool: a list of paths or of mappings with `path`.")
    budget_per_dataset: tuple[Budget, ...] | None = Field(
        None,
        description="In Axolotl: a budget for each entry of `datasets`, in their order; each is selected by itself.",
        json_schema_extra={"fix": "use a list, a budget for each entry of Axolotl's datasets; elsewhere leave it out"},
    )
    output_dir: PathText | None = Field(
        None, min_length=1, description="Run folder. Default: `runs/NAME-OF-THE-CONFIG`."
    )

    template: PathText = Field(
        "auto",
        min_length=1,
        description="`chat` (the tokenizer's), `alpaca`, `alpaca-paper` (no line break after `### Response:`), "
        "`chatml`, `raw`, a `.jinja` file; `auto`: chat, else alpaca.",
    )
    max_prompt_tokens: Int = Field(1024, ge=1, description="Longer prompts are rejected, never cut silently.")
    truncate: bool = Field(False, description="Cut the instruction of too long prompts instead of rejecting the row.")

    @field_validator("load_in_4bit")
    @classmethod
    def _not_by_a_server(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("engine") == "vllm-server":
            raise PydanticCustomError(
                "four_bit", "how a server holds its weights is set where it starts: use engine: hf, or engine: vllm"
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
