"""Names of tasks -> the harness's tasks with their data, before any model is loaded; the user's own task files first.

The harness looks for `data_files` in the working directory alone; those of a task file lie beside it.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import iglob
from pathlib import Path
from typing import Any

import yaml

from adg_plugin.config.files import BoundedLoader
from adg_plugin.errors import ConfigError, DataError, first_line, need
from adg_plugin.store.files import digest_bytes
from adg_plugin.tools.evaluation.tasks import EXTRA, WHY, LoadedTask, paper_task, refusal

# What the harness and `datasets` raise for a data set that cannot be had, or a task file that is wrong.
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, AssertionError)
# They give the model's answer to sympy's `parse_expr`, which is Python's `eval`, and do not declare it.
# Source: lm_eval 0.4.11, tasks/score/math/math_grader.py. Its other mathematics compare texts or use sympy's reader of
# LaTeX, which runs nothing.
_UNDECLARED = re.compile(r".*robustness_math.*|score_robustness")
_WHERE = ("dataset_path", "dataset_kwargs", "metadata")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function without source
# The readers of `datasets`, whose files are here; the files of other data sets are in their repository.
_READERS = {"arrow", "csv", "json", "pandas", "parquet", "text", "xml"}
_BOOL = "tag:yaml.org,2002:bool"

log = logging.getLogger(__name__)


def load(names: Sequence[str], folders: Sequence[Path], *, seed: int, allow_code: bool) -> list[LoadedTask]:
    """Return the tasks with their data, as the paper runs those it uses, others as their files say.

    Args:
        names: of tasks, groups or tags of the harness or of task files in `folders`; a task file goes before a task of
            the harness with its name.
        folders: where to look for more task files.
        seed: of the draw of worked examples, where a task draws them.
        allow_code: whether tasks that run the model's code may be loaded.

    Raises:
        ConfigError: there is no task of a name, or it runs code and that is not allowed, or `folders` are wrong.
        DataError: data sets are not to be had, or task files are wrong; names every task that it is true of.
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    from huggingface_hub import constants

    check_folders(folders)
    manager = _manager(names, folders)
    unknown, refused = [], []
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, list(manager.task_index), n=3)
            fix = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists those of the harness"
            unknown.append(
                f"tasks names {name!r}, which is neither a task of lm-evaluation-harness nor of a file in --include: "
                f"{fix}"
            )
        file = _task_file(name, manager)
        if not allow_code and (_UNDECLARED.fullmatch(name) or (file is not None and declares_code(file))):
            refused.append(refusal(name))
    if unknown or refused:
        raise ConfigError([*unknown, *refused])
    loaded: list[LoadedTask] = []
    failed: dict[str, Exception] = {}
    for name in names:
        try:
            loaded.append(_load(name, manager, folders, seed=seed))
        except _LOADING_ERRORS as err:
            log.debug("task %s", name, exc_info=True)
            failed[name] = err
            if isinstance(err, ConnectionError) and not constants.HF_HUB_OFFLINE:
                break  # after half a minute of trying, and the next one would take as long
    if failed:
        raise _unloadable(failed, untried=names[len(loaded) + len(failed) :])
    for task in loaded:  # parts of groups, which only now are known
        unsafe = any(getattr(leaf, "UNSAFE_CODE", False) for leaf in task.leaves.values())
        if not allow_code and (unsafe or any(map(_UNDECLARED.fullmatch, task.leaves))):
            raise ConfigError([refusal(task.name)])
    return loaded


def _manager(names: Sequence[str], folders: Sequence[Path]) -> Any:
    """Return the index of tasks; without the harness's own, which take seconds to read, where none is asked for."""
    tasks = need("lm_eval.tasks", extra=EXTRA, why=WHY)
    include = [str(folder) for folder in folders]
    if include:
        own = tasks.TaskManager(include_path=include, include_defaults=False)
        if all(name in own.all_subtasks for name in names):
            return own
    return tasks.TaskManager(include_path=include or None)


def _task_file(name: str, manager: Any) -> Path | None:
    """Return the file that says what a task or group is; None for a tag, and for what a group's file has in it."""
    entry = manager.task_index.get(name)
    if entry is None:
        return None
    path = entry["yaml_path"] if isinstance(entry, dict) else entry.yaml_path  # 0.4.11, and later ones
    return None if path in (None, -1) else Path(path)


def _own_file(name: str, manager: Any, folders: Sequence[Path]) -> Path | None:
    """Return the user's task file that a task or group is in, or None."""
    file = _task_file(name, manager)
    return file if file and any(map(file.is_relative_to, folders)) else None


def _load(name: str, manager: Any, folders: Sequence[Path], *, seed: int) -> LoadedTask:
    paper = paper_task(name)
    newer = getattr(manager, "load", None)  # since 0.4.12, with the tasks in one place
    with data_beside(lambda task: _own_file(task, manager, folders), _own_file(name, manager, folders)):
        nested = newer([name]) if newer else manager.load_task_or_group([name])
    outputs = () if newer else need("lm_eval.evaluator_utils", extra=EXTRA, why=WHY).get_task_list(nested)
    leaves = nested["tasks"] if newer else {output.task_name: output.task for output in outputs}
    for leaf in leaves.values():
        shots = (paper.shots if paper else leaf.get_config("num_fewshot")) or 0
        leaf.set_config(key="num_fewshot", value=shots)
        leaf.set_fewshot_seed(seed=seed)
        if shots:
            _check_examples(name, leaf, shots)
    sources = (_own_file(part, manager, folders) for part in (name, *leaves))
    return LoadedTask(
        name,
        nested,
        leaves,
        paper.metric if paper else None,
        source=next((str(file) for file in sources if file is not None), None),
        digests={key: _digest(leaf) for key, leaf in leaves.items()},
    )


def _digest(leaf: Any) -> str:
    """Return a digest of what a task asks and how; not of where its files are."""
    about = {key: value for key, value in leaf.dump_config().items() if key not in _WHERE}
    shown = list(leaf.fewshot_docs()) if leaf.get_config("num_fewshot") else []
    text = json.dumps([about, list(leaf.eval_docs), shown], sort_keys=True, default=str)
    return digest_bytes(_ADDRESS.sub("", text).encode(errors="backslashreplace"))


def _check_examples(name: str, leaf: Any, shots: int) -> None:
    """Raise where a task has fewer worked examples than it is to show: some releases of the harness then show fewer."""
    is_own = leaf.get_config("fewshot_split") == leaf.get_config("test_split") is not None
    there = len(list(leaf.fewshot_docs())) - is_own  # a question is not its own example
    if there < shots:
        raise DataError(
            f"task {name} shows {shots} worked examples before each question, and its data hold {there}: add some, or "
            "set num_fewshot lower (of a benchmark of the paper, under another name)"
        )


def _unloadable(failed: Mapping[str, Exception], untried: Sequence[str]) -> DataError:
    """Return one error for all tasks that cannot be loaded, with each fix said once."""
    by_fix: dict[str, list[str]] = {}
    for name, err in failed.items():
        fix = (
            "its data set is fetched once, with a network and without HF_HUB_OFFLINE; on a machine without one, "
            "--include DIR takes task files of your own, and one of the same name goes before the harness's"
        )
        if isinstance(err, (KeyError, TypeError, AttributeError, ImportError, AssertionError)):
            fix = "look at its task file, and at what it imports"
        by_fix.setdefault(fix, []).append(f"task {name} cannot be loaded ({first_line(err)})")
    blocks = [f"{lines[0]}: {fix}" if len(lines) == 1 else "\n".join([*lines, fix]) for fix, lines in by_fix.items()]
    if untried:
        blocks.append(f"not tried after that: {', '.join(untried)}")
    return DataError("\n".join(blocks))


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

    task_class = need("lm_eval.api.task", extra=EXTRA, why=WHY).ConfigurableTask
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
    return any(iglob(str(place), recursive=True))


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
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=BoundedLoader)
    except (yaml.YAMLError, OverflowError, ValueError, OSError) as err:
        raise DataError(f"task file {path} cannot be read: {' '.join(str(err).split())}") from None
    return {key.value: value for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
