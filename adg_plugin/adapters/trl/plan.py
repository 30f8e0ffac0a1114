"""A checked command of TRL's -> the data sets that it names, and the settings of its selection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adg_plugin.adapters.trl.arguments import NO_MODEL, Request
from adg_plugin.adapters.trl.checks import budget_problems, check_columns, check_pool, trl
from adg_plugin.adapters.trl.choice import training_precision
from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.sources import iter_records
from adg_plugin.data.templates import ALPACA
from adg_plugin.errors import ConfigError, DataError

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def training_set(request: Request) -> Any:
    """Return the training split; a ConfigError where none is named, a DataError where it cannot be loaded."""
    if not request.mixture.datasets and not request.script.dataset_name:
        raise ConfigError(["dataset_name is missing: give a data set, or a list of them as datasets"])
    loaded = trl().get_dataset(request.mixture) if request.mixture.datasets else _loaded(request.script)
    return _split(loaded, request.script.dataset_train_split, "dataset_train_split")


def evaluation_set(request: Request) -> Any:
    """Return the split to evaluate on, None where none is asked for; errors as those of `training_set`."""
    if request.training.eval_strategy == "no":
        return None
    if not request.script.dataset_name:
        raise ConfigError(["eval_strategy is set, and there is nothing to evaluate on: set dataset_name"])
    return _split(_loaded(request.script), request.script.dataset_test_split, "dataset_test_split")


def _loaded(script: Any) -> Any:
    """Return the splits of `dataset_name` as `trl sft` loads them, and from files too."""
    from datasets import load_dataset

    name, path = script.dataset_name, Path(script.dataset_name).expanduser()
    try:
        if path.is_file() and path.suffix in _BUILDERS:
            return load_dataset(_BUILDERS[path.suffix], data_files=str(path))
        return load_dataset(name, name=script.dataset_config, streaming=script.dataset_streaming)
    except (OSError, ValueError, RuntimeError) as err:
        fix = "give a file, folder or hub name"
        raise DataError(f"dataset_name is {name!r}: it cannot be loaded ({err}); {fix}") from err


def _split(loaded: Any, name: str, setting: str) -> Any:
    if name not in loaded:
        raise DataError(f"the data set has no split {name!r}, it has {', '.join(loaded)}: set {setting}")
    return loaded[name]


def selection_config(request: Request, run_dir: Path) -> ADGConfig:
    """Return the settings of a selection that runs by itself before training.

    Model, precision and quantisation are the trainer's unless the `adg:` block names another model; the pool is the
    trainer's data set unless the block names one.

    Raises:
        ConfigError: with every setting that cannot be, in either part.
        DataError: rows of a kind that cannot be selected from or trained on.
    """
    settings, problems = dict(request.adg), _trainer_problems(request)
    trained = request.model.model_name_or_path
    if trained is None:
        problems.append(NO_MODEL)
    elif settings.get("model", trained) == trained:
        if request.model.load_in_8bit and "load_in_4bit" not in settings:
            problems.append(
                "load_in_8bit is true: the selection reads 4-bit or full precision; set adg.load_in_4bit to true or "
                "false"
            )
        settings = {**_of_model(request), **settings}
    if request.training.eos_token is not None:
        settings.setdefault("eos_token", request.training.eos_token)
    _take_template(settings, request.training.chat_template_path, problems)
    if not settings.get("datasets"):
        settings["datasets"] = _trainer_datasets(request)
    if not settings["datasets"]:
        problems.append("datasets is missing: name the pool under adg.datasets, or as dataset_name or datasets")
    if problems:
        raise ConfigError(problems, source=request.source)
    settings["output_dir"] = str(run_dir)
    config = ADGConfig.parse(settings, prefix="adg.")
    if problems := [f"adg.{problem}" for problem in budget_problems(config)]:
        raise ConfigError(problems, source=request.source)
    for spec in config.datasets:
        first = next(iter_records([spec]))
        check_columns(first.data, first.spec.path, first.spec)
    if (held_out := evaluation_set(request)) is not None:
        check_pool(held_out, "the evaluation split")
    return config


def _trainer_datasets(request: Request) -> list[dict[str, Any]]:
    """Return the trainer's data sets as entries of `adg.datasets`."""
    script = request.script
    entries = [
        {"path": entry.path, "name": entry.name, "data_files": entry.data_files, "split": entry.split}
        for entry in request.mixture.datasets or []
    ]
    if not entries and script.dataset_name:
        entries = [{"path": script.dataset_name, "name": script.dataset_config, "split": script.dataset_train_split}]
    return [{key: value for key, value in entry.items() if value is not None} for entry in entries]


def _trainer_problems(request: Request) -> list[str]:
    script, mixture, training = request.script, request.mixture, request.training
    problems = []
    if request.trainer.get("resume_from_checkpoint"):
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


def _of_model(request: Request) -> dict[str, Any]:
    """Return what the trainer says about its model; the type is that of its training where TRL's default loads it."""
    model = request.model
    own = {
        "model": model.model_name_or_path,
        "revision": None if model.model_revision == "main" else model.model_revision,
        "trust_remote_code": request.training.trust_remote_code,
        "dtype": model.dtype,
        "load_in_4bit": model.load_in_4bit,
    }
    if "dtype" not in request.trainer:
        own["dtype"] = training_precision(request.training) or model.dtype
    if model.load_in_4bit:
        own["bnb_4bit_quant_type"] = model.bnb_4bit_quant_type
        own["bnb_4bit_use_double_quant"] = model.use_bnb_nested_quant
    return {name: value for name, value in own.items() if value is not None}


def _take_template(settings: dict[str, Any], path: str | None, problems: list[str]) -> None:
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
