"""Folders of the user's own tasks -> copies that the harness can read from anywhere.

The harness takes `data_files` from the working directory, and the user wrote them beside the task.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from adg_plugin.errors import ConfigError, DataError

# The readers of `datasets`, whose files are here; the files of other data sets are in their repository.
_READERS = {"arrow", "csv", "json", "pandas", "parquet", "text", "xml"}
_BOOL = "tag:yaml.org,2002:bool"
_ENDINGS = ("yaml", "yml")  # the harness's own templates end in `_yaml`, so that they are not taken for tasks


@contextmanager
def readable(folders: Sequence[Path]) -> Iterator[dict[Path, Path]]:
    """Yield copies of the task folders, each with its original.

    In them, data files, and templates outside, have their full paths. Everything but the task files is linked, not
    copied. The copies are gone afterwards.

    Raises:
        ConfigError: a folder is not there or holds no task file, or two files have a task of one name.
        DataError: a task file is not YAML, or names a data file that is not there.
    """
    with TemporaryDirectory(prefix="adg-tasks-") as temporary:
        copies = {}
        for number, folder in enumerate(folders):
            copy = Path(temporary, str(number))
            _copy(folder, copy)
            copies[copy] = folder
        _refuse_one_name_twice(folders)
        yield copies


def _refuse_one_name_twice(folders: Sequence[Path]) -> None:
    """Raise where two task files have a task or group of one name: the harness would take either, and say nothing.

    A folder that is given twice, or lies within another, is no such case.
    """
    places: dict[str, Path] = {}
    problems = []
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        root = _parsed(path)
        found = {key.value: value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
        for node in (found.get("group"), found.get("task")):
            if not isinstance(node, yaml.ScalarNode):
                continue
            first = places.setdefault(node.value, path)
            if first.resolve() != path.resolve():
                problems.append(f"task {node.value} is in {first} and in {path}: rename one, or leave its folder out")
    if problems:
        raise ConfigError(problems)


def _copy(folder: Path, copy: Path) -> None:
    if not folder.is_dir():
        raise ConfigError([f"--include is {str(folder)!r}: no such folder; give one that holds task files (*.yaml)"])
    if not any(folder.rglob("*.yaml")):
        raise ConfigError([f"--include is {str(folder)!r}: no task file (*.yaml) is in it"])
    copy.mkdir()
    for path in sorted(folder.rglob("*")):
        place = copy / path.relative_to(folder)
        if "__pycache__" in path.parts:
            continue
        if path.is_dir():
            place.mkdir(exist_ok=True)
        elif path.name.endswith(_ENDINGS):
            place.write_text(_rewritten(path, folder), encoding="utf-8")
        else:
            _link(path.absolute(), place)


def _link(path: Path, place: Path) -> None:
    try:
        place.symlink_to(path)
    except OSError:  # a system that lets no user make links
        shutil.copyfile(path, place)


def _rewritten(path: Path, folder: Path) -> str:
    """Return the task file with full paths; its nodes, not its values, so that tags such as `!function` stay."""
    root = _parsed(path)
    if root is None:
        return ""
    _rewrite(root, path, folder.absolute())
    return str(yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True))


def _parsed(path: Path) -> yaml.Node | None:
    try:
        return yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as err:
        raise DataError(f"task file {path} cannot be read: {' '.join(str(err).split())}") from None


def _rewrite(node: yaml.Node, path: Path, folder: Path) -> None:
    """Put full paths into a task, or into the tasks of a group."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _rewrite(item, path, folder)
    if not isinstance(node, yaml.MappingNode):
        return
    found = {key.value: value for key, value in node.value}
    beside = path.absolute().parent
    reader = found.get("dataset_path")
    if isinstance(reader, yaml.ScalarNode) and reader.value not in _READERS and (beside / reader.value).exists():
        reader.value = str(beside / reader.value)
    is_local = isinstance(reader, yaml.ScalarNode) and reader.value in _READERS
    options = found.get("dataset_kwargs")
    if isinstance(options, yaml.MappingNode):
        for key, value in options.value:
            if key.value in ("data_files", "data_dir"):
                _resolve(value, path, key.value, is_needed=is_local)
    included = found.get("include")
    for template in included.value if isinstance(included, yaml.SequenceNode) else [included]:
        if not isinstance(template, yaml.ScalarNode):
            continue
        target = (beside / template.value).resolve()
        if target.is_file() and not target.is_relative_to(folder.resolve()):
            template.value = str(target)  # else its copy lies where this one looks for it
    if isinstance(found.get("task"), yaml.SequenceNode):
        _rewrite(found["task"], path, folder)


def _resolve(node: yaml.Node, path: Path, key: str, *, is_needed: bool) -> None:
    """Put the full path in the place of each one that is given from the task file's folder."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _resolve(item, path, key, is_needed=is_needed)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _resolve(value, path, key, is_needed=is_needed)
    elif isinstance(node, yaml.ScalarNode) and "://" not in node.value:
        place = path.absolute().parent / node.value  # itself, where it is a full path
        if _is_there(place):
            node.value = str(place)
        elif is_needed and not _is_there(Path(node.value).absolute()):
            raise DataError(
                f"task file {path}: {key} names {node.value!r}, and there is no {place}: put the file there, or give "
                "its path from the task file's folder"
            )


def _is_there(place: Path) -> bool:
    if any(sign in str(place) for sign in "*?["):
        try:
            return any(Path(place.anchor).glob(str(place.relative_to(place.anchor))))
        except ValueError:
            return False
    return place.exists()


def declares_code(path: Path) -> bool:
    """Return whether a task file, or a template that it includes, says that the model's answers are run as code.

    As to the harness, all but a plain `false` says so.
    """
    root = _parsed(path)
    found = {key.value: value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
    own = found.get("unsafe_code")
    if own is not None:
        return not (own.tag == _BOOL and not yaml.SafeLoader.bool_values[own.value.lower()])
    included = found.get("include")
    names = included.value if isinstance(included, yaml.SequenceNode) else [included]
    targets = [path.parent / name.value for name in names if isinstance(name, yaml.ScalarNode)]
    return any(target.is_file() and declares_code(target) for target in targets)
