"""What cannot be selected from or trained on, or is not the TRL that is expected: refused before a model loads."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from adg_plugin.config.run_folder import publication_problems, run_folder
from adg_plugin.config.schema import IN_MEMORY, ADGConfig, DatasetSpec
from adg_plugin.data.layouts import find_layout, unknown_layout
from adg_plugin.data.templates import ALPACA
from adg_plugin.errors import ADGError, ConfigError, DataError, need

_VISION = ("image", "images", "pixel_values", "video", "videos")
_PREFERENCE = (("chosen", "rejected"), ("completions", "labels"), ("prompt", "completion", "label"))

# What of TRL is used that TRL does not promise.
_HOOK_PARAMETERS = ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"]
OTHER_TRL = "use TRL 1.9 to 1.16, or a newer adg-plugin"


def trl() -> Any:
    """Return the module `trl`; a MissingExtraError without it, an ADGError where its private hook has changed."""
    module = need("trl", extra="trl", why="training")
    need("peft", extra="trl", why="training")
    hook: Callable[..., Any] | None = getattr(module.SFTTrainer, "_prepare_dataset", None)
    found = [] if hook is None else list(inspect.signature(hook).parameters)
    if found != _HOOK_PARAMETERS:
        seen = "is gone" if hook is None else f"takes ({', '.join(found)}), expected ({', '.join(_HOOK_PARAMETERS)})"
        raise ADGError(
            f"SFTTrainer._prepare_dataset of TRL {module.__version__} {seen}: without it nothing could be selected; "
            f"{OTHER_TRL}"
        )
    return module


def check_pool(pool: Any, name: str = "train_dataset") -> None:
    """Validate that the rows can be selected from and trained on.

    Raises:
        DataError: streaming, pre-tokenised, vision, plain text, preference or reward data, unknown columns, no rows;
            names the column and the way out.
    """
    from datasets import Dataset, IterableDataset

    if isinstance(pool, IterableDataset):
        raise DataError(
            f"{name} is an IterableDataset: a stream has no pool to choose from; load it whole (streaming: false, "
            "dataset_streaming: false), or run `adg select` on it and train on the run folder"
        )
    if isinstance(pool, Mapping):
        raise DataError(f"{name} is a {type(pool).__name__} with {', '.join(map(str, pool))}: pass one split of it")
    if not isinstance(pool, Dataset):
        raise DataError(f"{name} is a {type(pool).__name__}: pass a datasets.Dataset")
    if not len(pool):
        raise DataError(f"{name} has no rows: give a data set with rows")
    if pool.format["type"] == "custom":
        raise DataError(f"{name} has a transform (with_transform): apply it with Dataset.map first")
    check_columns(pool.with_format(None)[0], name)


def check_columns(row: Mapping[str, Any], name: str, spec: DatasetSpec = IN_MEMORY) -> None:
    """Raise a DataError naming a column of a kind that TRL does not train on after a selection, and the way out."""
    if "input_ids" in row:
        raise DataError(
            f"{name} has a column `input_ids`: its rows are tokenised already, and the prompt cannot be told from the "
            "answer; give the rows as text or turns (messages, or prompt and completion)"
        )
    vision = next((column for column in _VISION if column in row), None) or _vision_part(row)
    if vision:
        raise DataError(f"{name} has `{vision}`: vision data is not supported; drop it, or select without it")
    for columns in _PREFERENCE:
        if all(column in row for column in columns):
            named = ", ".join(f"`{column}`" for column in columns)
            raise DataError(
                f"{name} has the columns {named}: preference or reward data; "
                "keep the good answers, as `prompt` and `completion`"
            )
    layout = find_layout(row, spec)
    if layout is None and "text" in row:
        raise DataError(
            f"{name} has a column `text` only: where a prompt ends in it cannot be known; split it into `prompt` and "
            "`completion`, or into `messages`, with Dataset.map"
        )
    if layout is None:
        raise DataError(f"{name}: {unknown_layout(row, spec)}")
    if layout == "prompt_completion" and spec.field_completion not in row:
        raise DataError(
            f"{name} has a column `{spec.field_prompt}` and no `{spec.field_completion}`: there is no answer to train "
            "on; add the answers"
        )


def _vision_part(row: Mapping[str, Any]) -> str | None:
    for column in ("messages", "prompt", "conversations"):
        turns = row.get(column)
        for turn in turns if isinstance(turns, list) else []:
            parts = turn.get("content") if isinstance(turn, Mapping) else None
            for part in parts if isinstance(parts, list) else []:
                if isinstance(part, Mapping) and part.get("type") not in (None, "text"):
                    return f"{column} with content of type {part['type']}"
    return None


def check_settings(config: ADGConfig, args: Any, formatting_func: Any = None) -> None:
    """Raise a ConfigError with every trainer setting (`args`: SFTConfig, None: TRL's own) in the way, and its fix."""
    problems = []
    if config.template not in ("auto", "chat", *ALPACA):
        problems.append(
            f"template is {config.template!r}: the trainer renders rows with the tokenizer's chat template, and the "
            "prompt must be the same; set chat_template_path for the trainer and leave template out"
        )
    problems += budget_problems(config)
    if getattr(args, "push_to_hub", False):
        problems += publication_problems(run_folder(config.output_dir, training=args.output_dir), args.output_dir)
    if config.datasets:
        problems.append(
            "datasets is set, but the pool is the trainer's data set: leave it out, and rename columns with "
            "Dataset.rename_column"
        )
    if (getattr(args, "dataset_kwargs", None) or {}).get("skip_prepare_dataset"):
        problems.append(
            "dataset_kwargs.skip_prepare_dataset is true: rows would reach the model as they are, with no prompt to "
            "sample from; leave it out and give rows as messages, or prompt and completion"
        )
    if formatting_func is not None:
        problems.append(
            "formatting_func is set: it turns rows into plain text, in which the prompt cannot be found; write the "
            "rows as `prompt` and `completion` with Dataset.map instead"
        )
    for sharded in ("DeepSpeed", "FSDP"):
        if getattr(args, sharded.lower(), None) or os.environ.get(f"ACCELERATE_USE_{sharded.upper()}") == "true":
            problems.append(
                f"{sharded} is on: the trainer's model is in pieces and cannot sample; select first, in a process of "
                "its own, with `adg run`"
            )
    if problems:
        raise ConfigError(problems)


def budget_problems(config: ADGConfig) -> list[str]:
    """Return what is wrong with the budget where TRL trains: its data sets are one pool."""
    if config.budget_per_dataset is None:
        return []
    return ["budget_per_dataset is set: that is for Axolotl; set budget, for all rows together"]


def check_processing_class(processing_class: Any) -> None:
    """Raise a ConfigError for a processor of a vision model; a tokenizer passes."""
    from transformers import ProcessorMixin

    if isinstance(processing_class, ProcessorMixin):
        problem = f"processing_class is a {type(processing_class).__name__}: vision models are asked by their tokenizer"
        raise ConfigError([f"{problem} only; pass processing_class=AutoTokenizer.from_pretrained(...)"])
