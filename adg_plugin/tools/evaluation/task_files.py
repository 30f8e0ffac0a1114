"""The user's own task files: what is wrong with them, and their data, which lie beside them.

The harness looks for `data_files` in the working directory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from adg_plugin.errors import ConfigError, DataError, need

# The readers of `datasets`, whose files are here; the files of other data sets are in their repository.
_READERS = {"arrow", "csv", "json", "pandas", "parquet", "text", "xml"}
_BOOL = "tag:yaml.org,2002:bool"


def check_folders(folders: Sequence[Path]) -> None:
    """Validate folders of task files.

    Two files with a task or group of one name are refused: the harness would take either, and say nothing. A folder
    that is given twice, or lies within another, is no such case.

    Raises:
        ConfigError: a folder is not there or holds no task file, or two files have a task of one name.
        DataError: a task file is not YAML.
    """
    places: dict[str, Path] = {}
    problems = []
    for folder in folders:
        files = sorted(folder.rglob("*.yaml"))
        if not folder.is_dir():
            problems.append(f"--include is {str(folder)!r}: no such folder; give one that holds task files (*.yaml)")
        elif not files:
            problems.append(f"--include is {str(folder)!r}: no task file (*.yaml) is in it")
        for path in files:
            found = _nodes(path)
            names = [node.value for key in ("group", "task") if isinstance(node := found.get(key), yaml.ScalarNode)]
            for name in names:
                first = places.setdefault(name, path)
                if first.resolve() != path.resolve():
                    problems.append(f"task {name} is in {first} and in {path}: rename one, or leave its folder out")
    if problems:
        raise ConfigError(problems)


def declares_code(path: Path) -> bool:
    """Return whether a task file, or a template that it includes, says that the model's answers are run as code.

    As to the harness, all but a plain `false` says so.
    """
    own = _nodes(path).get("unsafe_code")
    if own is not None:
        return not (own.tag == _BOOL and not yaml.SafeLoader.bool_values[own.value.lower()])
    return any(map(declares_code, _templates(path)))


@contextmanager
def data_beside(file_of: Callable[[str], Path | None], group_file: Path | None) -> Iterator[None]:
    """Have the harness look for a task's data beside its file, its templates and its group first.

    Args:
        file_of: the name of a task -> the user's file that it is in; None: it is the harness's, or of a group's file.
        group_file: the user's file of the group that is being loaded, if it is one.

    Raises:
        DataError: a task names a data file that is not there.
    """
    from adg_plugin.engines.models.inference_state import replaced

    task_class = need("lm_eval.api.task", extra="eval", why="adg eval").ConfigurableTask
    fetch = task_class.download

    def download(task: Any, dataset_kwargs: Any = None, **options: Any) -> None:
        file = file_of(task.config.task) or group_file
        if file is not None:
            folders = [path.absolute().parent for path in (*_with_templates(file), group_file or file)]
            if task.DATASET_PATH not in _READERS:
                task.DATASET_PATH = _beside(task.DATASET_PATH, folders) or task.DATASET_PATH
            dataset_kwargs = {
                key: _resolved(value, folders, f"task file {file}: {key}", is_needed=task.DATASET_PATH in _READERS)
                if key in ("data_files", "data_dir")
                else value
                for key, value in (dataset_kwargs or {}).items()
            }
        fetch(task, dataset_kwargs, **options)

    with replaced(task_class, download=download):
        yield


def _resolved(value: Any, folders: Sequence[Path], key: str, *, is_needed: bool) -> Any:
    """Return data files with the full path of each one that lies in one of the folders."""
    if isinstance(value, list):
        return [_resolved(item, folders, key, is_needed=is_needed) for item in value]
    if isinstance(value, dict):
        return {name: _resolved(item, folders, key, is_needed=is_needed) for name, item in value.items()}
    if not isinstance(value, str) or "://" in value:
        return value
    found = _beside(value, folders)
    if found is None and is_needed and not _is_there(Path(value).absolute()):
        raise DataError(
            f"{key} names {value!r}, and there is no {folders[0] / value}: put the file there, or give its path from "
            "the task file's folder"
        )
    return found or value


def _beside(name: str | None, folders: Sequence[Path]) -> str | None:
    places = (folder / name for folder in folders if name)  # the name itself, where it is a full path
    return next((str(place) for place in places if _is_there(place)), None)


def _is_there(place: Path) -> bool:
    if any(sign in str(place) for sign in "*?["):
        try:
            return any(Path(place.anchor).glob(str(place.relative_to(place.anchor))))
        except ValueError:
            return False
    return place.exists()


def _with_templates(path: Path) -> Iterator[Path]:
    yield path
    for template in _templates(path):
        yield from _with_templates(template)


def _templates(path: Path) -> list[Path]:
    """Return the files that a task file includes."""
    node = _nodes(path).get("include")
    names = node.value if isinstance(node, yaml.SequenceNode) else [node]
    targets = [path.parent / name.value for name in names if isinstance(name, yaml.ScalarNode)]
    return [target for target in targets if target.is_file()]


def _nodes(path: Path) -> dict[str, yaml.Node]:
    """Return what a task file says under each key; as nodes, so that tags such as `!function` are not followed."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as err:
        raise DataError(f"task file {path} cannot be read: {' '.join(str(err).split())}") from None
    return {key.value: value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
