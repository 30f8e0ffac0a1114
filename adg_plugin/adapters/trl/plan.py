"""A checked command of TRL's -> the selection's settings, with what both parts share written once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adg_plugin.adapters.trl.arguments import Request
from adg_plugin.adapters.trl.checks import budget_problems, check_columns, check_pool
from adg_plugin.adapters.trl.choice import training_precision
from adg_plugin.adapters.trl.data import evaluation_set
from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.sources import iter_records
from adg_plugin.data.templates import ALPACA
from adg_plugin.errors import ConfigError


def selection_config(request: Request, run_dir: Path) -> ADGConfig:
    """Return the settings of a selection that runs by itself before training.

    Model, precision and quantisation are the trainer's unless the `adg:` block names another model; the pool is the
    trainer's data set unless the block names one.

    Raises:
        ConfigError: with every setting that cannot be, in either part.
        DataError: rows of a kind that cannot be selected from or trained on.
    """
    settings = dict(request.adg)
    problems = _trainer_problems(request)
    trained = request.model.model_name_or_path
    if trained is None:
        problems.append("model_name_or_path is missing: set it to the model to train (a folder, a hub name, `demo`)")
    elif settings.get("model", trained) == trained:
        problems += _take_model(settings, request)
    _take_template(settings, request, problems)
    if not settings.get("datasets"):
        settings["datasets"] = trainer_datasets(request)
    if not settings["datasets"]:
        problems.append("datasets is missing: name the pool under adg.datasets, or as dataset_name or datasets")
    if problems:
        raise ConfigError(problems, source=request.given.source)
    settings["output_dir"] = str(run_dir)
    config = ADGConfig.parse(settings, prefix="adg.")
    if problems := [f"adg.{problem}" for problem in budget_problems(config)]:
        raise ConfigError(problems, source=request.given.source)
    for spec in config.datasets:
        first = next(iter_records([spec]))
        check_columns(first.data, first.spec.path, first.spec)
    held_out = evaluation_set(request)
    if held_out is not None:
        check_pool(held_out, "the evaluation split")
    return config


def trainer_datasets(request: Request) -> list[dict[str, Any]]:
    """Return the trainer's data sets as entries of `adg.datasets`."""
    mixture, script = request.mixture, request.script
    entries: list[dict[str, Any]] = []
    for entry in mixture.datasets or []:
        spec = {"path": entry.path, "name": entry.name, "data_files": entry.data_files, "split": entry.split}
        entries.append({key: value for key, value in spec.items() if value is not None})
    if not entries and script.dataset_name:
        spec = {"path": script.dataset_name, "name": script.dataset_config, "split": script.dataset_train_split}
        entries.append({key: value for key, value in spec.items() if value is not None})
    return entries


def _trainer_problems(request: Request) -> list[str]:
    script, mixture, training = request.script, request.mixture, request.training
    problems = []
    if request.given.trainer.get("resume_from_checkpoint"):
        problems.append(
            "resume_from_checkpoint is set: `adg run` resumes from the last checkpoint of its output by itself; "
            "leave it out, or use `adg sft`"
        )
    for name, value in (("dataset_streaming", script.dataset_streaming), ("streaming", mixture.streaming)):
        if value:
            problems.append(f"{name} is true: a stream has no pool to choose from; leave it out")
    if (training.dataset_kwargs or {}).get("skip_prepare_dataset"):
        problems.append(
            "dataset_kwargs.skip_prepare_dataset is true: rows would reach the model unprepared; leave it out"
        )
    if mixture.test_split_size is not None:
        problems.append(
            f"test_split_size is {mixture.test_split_size}: rows held back for a test would be selected from; "
            "keep them in a file of their own and name it with dataset_name and dataset_test_split"
        )
    if training.eval_strategy != "no" and not script.dataset_name:
        problems.append(
            f"eval_strategy is {training.eval_strategy.value!r}, and there is no data set to evaluate on: set "
            "dataset_name and dataset_test_split, or eval_strategy: 'no'"
        )
    for entry in mixture.datasets or []:
        for name in ("columns", "fraction", "data_dir"):
            if getattr(entry, name, None) is not None:
                problems.append(
                    f"datasets: {name} is {getattr(entry, name)!r}: the selection does not read it; "
                    "describe the pool under adg.datasets instead"
                )
    return problems


def _take_model(settings: dict[str, Any], request: Request) -> list[str]:
    model = request.model
    own: Mapping[str, Any] = {
        "model": model.model_name_or_path,
        "revision": None if model.model_revision == "main" else model.model_revision,
        "trust_remote_code": request.training.trust_remote_code,
        "dtype": _dtype(request),
        "load_in_4bit": model.load_in_4bit,
        "bnb_4bit_quant_type": model.bnb_4bit_quant_type if model.load_in_4bit else None,
        "bnb_4bit_use_double_quant": model.use_bnb_nested_quant if model.load_in_4bit else None,
    }
    for name, value in own.items():
        if value is not None:
            settings.setdefault(name, value)
    if model.load_in_8bit and "load_in_4bit" not in request.adg:
        return [
            "load_in_8bit is true: the selection reads 4-bit or full precision; set adg.load_in_4bit to true or false"
        ]
    return []


def _dtype(request: Request) -> str | None:
    """Return the type to ask the model in: as the trainer loads it, or, where that is TRL's default, as it trains."""
    loaded: str | None = request.model.dtype
    return loaded if "dtype" in request.given.trainer else training_precision(request.training) or loaded


def _take_template(settings: dict[str, Any], request: Request, problems: list[str]) -> None:
    path = request.training.chat_template_path
    if request.training.eos_token is not None:
        settings.setdefault("eos_token", request.training.eos_token)
    if path is None:
        if settings.get("template", "auto") not in ("auto", "chat", *ALPACA):
            problems.append(
                f"adg.template is {settings['template']!r}: the trainer renders rows with the tokenizer's chat "
                "template; set chat_template_path and leave adg.template out"
            )
    elif not Path(path).is_file():
        problems.append(
            f"chat_template_path is {path!r}: the selection cannot take a template from another model; "
            "give a .jinja file"
        )
    elif settings.setdefault("template", str(path)) != str(path):
        own = settings["template"]
        problems.append(f"adg.template is {own!r}, chat_template_path {path!r}: leave adg.template out")
