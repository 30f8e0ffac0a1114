"""Where a selection's results go, and the file of settings that every command on a pool reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adg_plugin.config.messages import NO_POOL
from adg_plugin.config.schema import ADGConfig, load_config
from adg_plugin.errors import ConfigError

RUNS = "runs"  # in the current folder
SELECTION = "selection"  # in it, or in the output folder of a training


def run_folder(*named: str | Path | None, settings: Path | None = None, training: str | Path | None = None) -> str:
    """Return the run folder, which may be a URL: the first that is named, else a default.

    Args:
        named: what the user gave, in order of precedence, such as `--out` and then `output_dir`.
        settings: the file of settings; the default is then `runs/NAME`.
        training: the output folder of a training; the default is then `selection` in it.

    Returns:
        The folder, without a slash at the end; `runs/selection` where neither a file nor a training is known.
    """
    given = next((str(name) for name in named if name), None)
    if given is not None:
        folder = given.rstrip("/") or "/"
        return given if "://" in given and "://" not in folder else folder  # `memory://` ends with its slashes
    if training is not None:
        return str(Path(training) / SELECTION)
    return str(Path(RUNS) / (SELECTION if settings is None else settings.stem))


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
