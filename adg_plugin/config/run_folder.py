"""Where a selection's results go, and the file of settings that every command on a pool reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from adg_plugin.config.messages import NO_POOL
from adg_plugin.config.schema import ADGConfig, load_config
from adg_plugin.errors import ConfigError

RUNS = "runs"  # in the current folder
SELECTION = "selection"  # in it, or among what is private in the output folder of a training
# transformers' `push_to_hub` uploads all of an output folder but `_*` and `checkpoint-*`.
PRIVATE = "_adg"


def run_folder(*named: str | Path | None, settings: Path | None = None, training: str | Path | None = None) -> str:
    """Return the run folder, which may be a URL: the first that is named, else a default.

    Args:
        named: what the user gave, in order of precedence, such as `--out` and then `output_dir`.
        settings: the file of settings; the default is then `runs/NAME`.
        training: the output folder of a training; the default is then `_adg/selection` in it.

    Returns:
        The folder, without a slash at the end; `runs/selection` where neither a file nor a training is known.
    """
    given = next((str(name) for name in named if name), None)
    if given is not None:
        folder = given.rstrip("/") or "/"
        return given if "://" in given and "://" not in folder else folder  # `memory://` ends with its slashes
    if training is not None:
        return str(private_path(training, SELECTION))
    return str(Path(RUNS) / (SELECTION if settings is None else settings.stem))


def private_path(training: str | Path, name: str) -> Path:
    """Return where a file or run folder of ours that is not to be published lies in the output folder of a training.

    That is `_adg`. What version 0.2 put beside it stays there, and is found as long as `_adg` has none.
    """
    path, older = Path(training, PRIVATE, name), Path(training, name)
    is_older = older.is_file() or any((older / part).exists() for part in ("config.json", "answers"))
    return older if is_older and not path.exists() else path


def publication_problems(run_dir: str | Path, training: str | Path) -> list[str]:
    """Return what is wrong with a run folder where `push_to_hub` uploads the output folder of the training."""
    place, output = Path(os.path.realpath(run_dir)), Path(os.path.realpath(training))
    if not place.is_relative_to(output):
        return []
    first = next(iter(place.relative_to(output).parts), "")
    if first.startswith(("_", "checkpoint-")):
        return []
    fix = f"move it to {Path(training, PRIVATE, SELECTION)}, or name a folder outside as its output_dir"
    return [f"the output folder is uploaded, and run folder {run_dir} in it holds the whole pool: {fix}"]


def load_selection(
    path: Path, overrides: list[str] | None = None, out: str | Path | None = None, **given: Any
) -> tuple[ADGConfig, str]:
    """Return the settings in a file and the run folder, which may be a URL.

    Args:
        out: in the place of `output_dir`.
        given: settings of the command line; None leaves the file's.

    Raises:
        ConfigError: with every mistake in it, or no pool is named.
    """
    config = load_config(path, overrides, **{key: value for key, value in given.items() if value is not None})
    if not config.datasets:
        raise ConfigError([NO_POOL], source=str(path))
    return config, run_folder(out, config.output_dir, settings=path)
