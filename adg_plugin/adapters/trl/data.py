"""The data sets that a command of TRL's names, loaded as `trl sft` loads them, and from files too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adg_plugin.adapters.trl.arguments import Request
from adg_plugin.adapters.trl.contract import trl
from adg_plugin.errors import ConfigError, DataError

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def training_set(request: Request) -> Any:
    """Return the training split; a ConfigError where none is named, a DataError where it cannot be loaded."""
    script, mixture = request.script, request.mixture
    if mixture.datasets:
        return _split(trl().get_dataset(mixture), script.dataset_train_split, "dataset_train_split")
    if not script.dataset_name:
        raise ConfigError(["dataset_name is missing: give a data set, or a list of them as datasets"])
    return _split(_loaded(script), script.dataset_train_split, "dataset_train_split")


def evaluation_set(request: Request) -> Any:
    """Return the split to evaluate on, of `dataset_name`, or None where no evaluation is asked for.

    Raises:
        ConfigError: evaluation is asked for, and no data set for it is named.
        DataError: it cannot be loaded.
    """
    if request.training.eval_strategy == "no":
        return None
    if not request.script.dataset_name:
        raise ConfigError(["eval_strategy is set, and there is nothing to evaluate on: set dataset_name"])
    return _split(_loaded(request.script), request.script.dataset_test_split, "dataset_test_split")


def _loaded(script: Any) -> Any:
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
