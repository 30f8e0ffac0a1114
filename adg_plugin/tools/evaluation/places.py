"""Where the results of a model are kept, and which selection they belong to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from adg_plugin.config.run_folder import SELECTION
from adg_plugin.errors import ConfigError, StoreError
from adg_plugin.report.side_files import FOLDER
from adg_plugin.store.files import read_json
from adg_plugin.store.reader import CONFIG, MANIFEST, MARKER, SELECTED

_ANCESTORS = 3  # RUN/model/checkpoint-100 is the deepest that training writes
# Folder names that do not tell one model from another.
_SHARED_NAMES = re.compile(r"adapter|checkpoint-\d+|final|merged|model")


def results_path(model: str, *, run: Path | None = None, name: str | None = None, limit: int | None = None) -> Path:
    """Return where the results of a model are kept: `eval/NAME.json` in its run folder, else here.

    Args:
        model: a folder or a hub name.
        run: the run folder; None: the one that the model was trained from, where its place tells.
        name: NAME; None: one that is made from the model's, and from the limit: a try-out has a file of its own.
        limit: questions per task; None: all.

    Raises:
        ConfigError: `name` is no plain file name.
        StoreError: `run` is no run folder of a finished selection.
    """
    if name is not None and not re.fullmatch(r"\w[\w.+=@ -]*", name):
        raise ConfigError([f"--name is {name!r}: use one plain file name, such as {label(name)!r}"])
    if run is not None and not _is_finished_run(run):
        raise StoreError(
            f"--run is {str(run)!r}: no run folder of a finished selection; give one, or leave --run out for ./{FOLDER}"
        )
    folder = run or run_folder_of(model) or Path()
    made = label(model) + ("" if limit is None else f"-limit-{limit}")
    return folder / FOLDER / f"{name or made}.json"


def run_folder_of(model: str) -> Path | None:
    """Return the finished run folder that a model was trained from, or None where its place does not tell.

    It is the one that the model's folder lies in, or the one that `adg run` and the trainers write into their output
    folder: OUT/selection, of the model in OUT, in OUT/checkpoint-8 or in OUT/model. Nothing else is looked at.
    """
    place = Path(model)
    if not _is_folder(place):
        return None
    around = [place.absolute(), *list(place.absolute().parents)[:_ANCESTORS]]
    outputs = []
    for folder in around:
        outputs.append(folder / SELECTION)
        if not _SHARED_NAMES.fullmatch(folder.name):
            break  # a name of its own: what lies beside it is not its output
    found = next(filter(_is_finished_run, [*around, *outputs]), None)
    if found is None or place.is_absolute():
        return found
    here = Path.cwd()  # to show it as the user would write it
    return found.relative_to(here) if found.is_relative_to(here) else found


def selection_of(results: Path) -> dict[str, Any] | None:
    """Return which selection a file of results lies beside, or None: run folder, `created`, digest of its rows.

    Raises:
        StoreError: the run's manifest cannot be read.
    """
    run = results.absolute().parent.parent
    if not _is_finished_run(run):
        return None
    manifest = read_json(run / MANIFEST, fix="run adg select again") or {}
    digest = manifest.get("files", {}).get(SELECTED, {}).get("blake2b")
    return {"run": str(run), "created": manifest.get("created"), "selected": digest}


def label(model: str) -> str:
    """Return a file name, without its ending, for a model: `runs/demo/model` -> `demo-model`, `org/name` -> `org-name`.

    Of a folder, the last name that tells it from others, and what follows.
    """
    place = Path(model)
    if _is_folder(place):
        names = place.absolute().parts[1:]
        first = len(names) - 1
        while first > 0 and _SHARED_NAMES.fullmatch(names[first]):
            first -= 1
        model = "-".join(names[first:])
    return re.sub(r"[^\w.]+", "-", model).strip("-.") or "model"


def _is_folder(place: Path) -> bool:
    try:
        return place.is_dir()
    except OSError:  # a folder around it is not ours to read
        return False


def _is_finished_run(folder: Path) -> bool:
    try:
        # a model's folder has a config.json too
        return (folder / MANIFEST).is_file() and MARKER in (read_json(folder / CONFIG, fix="give another --run") or {})
    except (OSError, StoreError):  # not ours to read, or not JSON
        return False
