"""A selection from a `Dataset` in memory, by a model in memory: for training loops, ours and other people's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adg_plugin.config.run_folder import run_folder
from adg_plugin.config.schema import IN_MEMORY, ADGConfig, DatasetSpec
from adg_plugin.data.rows import Row, canonical_json, unique_rows
from adg_plugin.data.sources import iter_memory
from adg_plugin.errors import ConfigError, DataError
from adg_plugin.pipeline.ranks import Team
from adg_plugin.pipeline.run import Selection, run_selection
from adg_plugin.pipeline.stage import Pool, memory_spec
from adg_plugin.selectors.registry import selector
from adg_plugin.store.keys import FOUR_BIT

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.nn import Module


def select_dataset(
    dataset: Dataset,
    model: Module,
    processing_class: Any,
    config: ADGConfig | Mapping[str, Any] | None = None,
    *,
    output_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Dataset:
    """Return the chosen rows of `dataset`, in its order.

    The model is used as it is, adapters switched off, and afterwards is as it was: mode, `requires_grad`, random
    states. Answers are kept in the run folder, so the next call with another budget samples nothing.

    Args:
        dataset: the pool, in any row layout that `adg select` reads.
        model: a causal language model of transformers, bare or wrapped by PEFT.
        processing_class: its tokenizer.
        config: settings; those of the model (`model`, `load_in_4bit`, ...) are taken from `model`. With `dtype`
            bfloat16 or float16, weights in float32 are cast while the model is asked.
        output_dir: run folder; default the config's `output_dir`, else `runs/selection`.
        show_progress: whether to report progress on stderr.

    Raises:
        ADGError: of the kind that tells configuration, data, model, run folder and numbers apart.
    """
    settings = config if isinstance(config, ADGConfig) else ADGConfig.parse(config or {})
    run_dir = Path(run_folder(output_dir, settings.output_dir))
    chosen = choose_in_memory(dataset, model, processing_class, settings, run_dir, show_progress=show_progress)
    return dataset.select(positions(dataset, chosen.ids, memory_spec(settings)))


def choose_in_memory(
    dataset: Dataset,
    model: Module,
    tokenizer: Any,
    config: ADGConfig,
    run_dir: Path,
    *,
    training: str | None = None,
    own: bool = False,
    team: Team | None = None,
    show_progress: bool = True,
) -> Selection:
    """Return the selection from a `Dataset` by a model in memory.

    Args:
        training: the half precision that the model is trained in by autocast, such as bfloat16: where its weights are
            in float32 and the config names no `dtype`, it samples in that, too.
        own: refuse a run folder whose answers came of another model or other settings.
        team: the processes that share the sampling; each calls this.

    Raises:
        ConfigError: a setting contradicts the model.
    """
    import torch

    from adg_plugin.engines.models.inference_state import cast_when_loaded, inference_state
    from adg_plugin.engines.models.loading import Source

    refuse_elsewhere(config)
    with ExitStack() as stack:
        backbone = stack.enter_context(inference_state(model))
        settings = with_model_of(config, backbone, training)
        source = Source.loaded(backbone, tokenizer, settings, asked=selector(settings.method).asks_backbone)
        if settings.dtype not in ("auto", _dtype_of(backbone)):
            source = stack.enter_context(cast_when_loaded(source, getattr(torch, settings.dtype)))
        pool = Pool.of(settings, dataset, for_training=True)
        return run_selection(pool, settings, run_dir, source=source, own=own, team=team, show_progress=show_progress)


def refuse_elsewhere(config: ADGConfig) -> None:
    """Raise a ConfigError where the settings name another engine or executor than the model in memory."""
    here = {"engine": "hf", "answers": None, "executor": "inline"}
    why = "the model that is trained answers here; leave it out, or select first with `adg run`"
    named = {name: getattr(config, name) for name in here}
    if problems := [f"{name} is {value!r}: {why}" for name, value in named.items() if value != here[name]]:
        raise ConfigError(problems)


def with_model_of(config: ADGConfig, model: Any, training: str | None = None) -> ADGConfig:
    """Return the configuration with what the model in memory decides: it may repeat that, but not contradict it.

    Args:
        config: the settings; `dtype` may ask for weights in float32 to be cast.

    Raises:
        ConfigError: the configuration says otherwise; with every contradiction.
    """
    from adg_plugin.engines.models.inference_state import can_be_cast

    quantized = getattr(model.config, "quantization_config", None)
    four_bit = {} if quantized is None else (quantized if isinstance(quantized, dict) else quantized.to_dict())
    facts: dict[str, Any] = {"load_in_4bit": bool(four_bit.get("load_in_4bit"))}
    if facts["load_in_4bit"]:
        facts |= {name: four_bit[name] for name in FOUR_BIT if name in four_bit}
    facts["model"] = getattr(model, "name_or_path", None) or config.model
    named = config.model_dump(include=config.model_fields_set)
    problems = [
        f"{name} is {named[name]!r}, but the model that is trained has {value!r}: leave it out"
        for name, value in facts.items()
        if name != "model" and name in named and named[name] != value and named[name] != "auto"
    ]
    if can_be_cast(model):
        facts["dtype"] = training if training and config.dtype == "auto" else config.dtype
    elif config.dtype not in ("auto", _dtype_of(model)):
        trained_in = _dtype_of(model)
        problems.append(f"dtype is {config.dtype!r}, but the model that is trained is in {trained_in}: leave it out")
    problems += model_problems(config, facts["model"])
    try:
        memory_spec(config)
    except ConfigError as err:
        problems += err.problems
    if problems:
        raise ConfigError(problems)
    return config.updated(**facts)


def _dtype_of(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def model_problems(config: ADGConfig, trained: str | None) -> list[str]:
    """Return what is wrong where the configuration names a model and another one is trained."""
    if config.model is None or trained is None or config.model == trained:
        return []
    if config.model == "demo":
        from adg_plugin.demo import model_path

        if str(model_path()) == trained:
            return []
    return [
        f"model is {config.model!r}, but the model that is trained is {trained!r}, and it is the one that is sampled "
        "from: leave it out, or select with another model by `adg run`"
    ]


def positions(dataset: Dataset, ids: Sequence[str], spec: DatasetSpec = IN_MEMORY) -> list[int]:
    """Return where the rows with these ids are in the data set, ascending.

    Args:
        spec: the layout and column names that they were chosen with, where those are not the usual ones.

    Raises:
        DataError: the data set has no such row.
    """
    wanted = set(ids)
    found = {
        row.id: int(row.where.rpartition(":")[2]) - 1
        for row in unique_rows(iter_memory(dataset, spec))
        if isinstance(row, Row) and row.id in wanted
    }
    if missing := sorted(wanted - found.keys()):
        raise DataError(
            f"the data set has no row {missing[0]!r}, nor {len(missing) - 1} others of the {len(wanted)} chosen ones: "
            "train on the data set that they were chosen from"
        )
    return sorted(found.values())


def rows_digest(rows: Sequence[Mapping[str, Any]] | Dataset) -> str:
    """Return a digest of the rows' content, whatever their order."""
    lines = sorted(canonical_json(row) for row in rows)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
