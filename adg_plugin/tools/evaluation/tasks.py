"""Names of tasks -> the harness's tasks with their data, before any model is loaded."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adg_plugin.errors import ConfigError, DataError, first_line, need
from adg_plugin.store.files import digest_bytes
from adg_plugin.tools.evaluation.protocol import ALLOW_CODE, PAPER, PRESET, paper_task
from adg_plugin.tools.evaluation.task_files import check_folders, data_beside, declares_code

WHY = "adg eval"
EXTRA = "eval"
_RUNS_CODE = f"it runs code that the model wrote on this machine: {ALLOW_CODE} permits that"

# What the harness and `datasets` raise for a data set that cannot be had, or a task file that is wrong.
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, AssertionError)
# They give the model's answer to sympy's `parse_expr`, which is Python's `eval`, and do not declare it.
# Source: lm_eval 0.4.11, tasks/score/math/math_grader.py. Its other mathematics compare texts or use sympy's reader of
# LaTeX, which runs nothing.
_UNDECLARED = re.compile(r".*robustness_math.*|score_robustness")
_WHERE = ("dataset_path", "dataset_kwargs", "metadata")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function without source
_PERMIT = "HF_ALLOW_CODE_EVAL"  # without it, the `code_eval` metric runs nothing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """A task, or a group of tasks, with its data.

    Attributes:
        name: as it was asked for.
        nested: what the harness's `evaluate` takes.
        leaves: the tasks in it, by name.
        metric: the harness's key of the metric that counts; None: the task's first.
        source: the user's task file that it, or one of its tasks, came from; None: all are the harness's own.
        digests: of its tasks as they are put, by name.
    """

    name: str
    nested: Mapping[Any, Any]
    leaves: Mapping[str, Any]
    metric: str | None
    source: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def digest(self, name: str) -> str:
        """Return the digest of one of its tasks, or of all for any other name."""
        return self.digests.get(name) or digest_bytes(json.dumps(sorted(self.digests.items())).encode())

    @property
    def shots(self) -> int | None:
        """Worked examples before each question; None where the tasks of a group differ."""
        counts = {int(task.get_config("num_fewshot") or 0) for task in self.leaves.values()}
        return counts.pop() if len(counts) == 1 else None


def wanted(tasks: str | Sequence[str], *, allow_code: bool) -> tuple[list[str], dict[str, str]]:
    """Return the names of the tasks to run, and those of the preset that are left out, with the reason.

    Args:
        tasks: names, separated by commas or as a list; `paper` is the preset, and may be one of several.
        allow_code: whether tasks that run the model's code may be run.

    Raises:
        ConfigError: none is named, or one that the paper uses is named and runs code, which is not allowed.
    """
    given = tasks.split(",") if isinstance(tasks, str) else list(tasks)
    names: list[str] = []
    left_out: dict[str, str] = {}
    refused: list[str] = []
    for name in filter(None, (name.strip() for name in given)):
        if name == PRESET:
            names += [task.name for task in PAPER if allow_code or not task.runs_code]
            left_out |= {task.name: _RUNS_CODE for task in PAPER if task.runs_code and not allow_code}
            continue
        known = paper_task(name)
        if known is not None and known.runs_code and not allow_code:
            refused.append(_refusal(name))
        names.append(name)
    if refused:
        raise ConfigError(refused)
    if not names:
        raise ConfigError([f"tasks is empty: name tasks of lm-evaluation-harness, or {PRESET}"])
    return list(dict.fromkeys(names)), left_out


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
    problems, refused = [], []
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, list(manager.task_index), n=3)
            known = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists those of the harness"
            problems.append(
                f"tasks names {name!r}, which is neither a task of lm-evaluation-harness nor of a file in --include: "
                f"{known}"
            )
        file = _task_file(name, manager)
        if not allow_code and (_UNDECLARED.fullmatch(name) or (file is not None and declares_code(file))):
            refused.append(_refusal(name))
    problems += refused
    if problems:
        raise ConfigError(problems)
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
            raise ConfigError([_refusal(task.name)])
    return loaded


def _refusal(name: str) -> str:
    return f"task {name}: {_RUNS_CODE}, or leave the task out"


@contextmanager
def code_permitted(allowed: bool) -> Iterator[None]:
    """Let the metric that runs code do so, or not, whatever the environment says; for this process and its children."""
    before = os.environ.get(_PERMIT)
    os.environ[_PERMIT] = "1" if allowed else "0"
    try:
        yield
    finally:
        os.environ.pop(_PERMIT)
        if before is not None:
            os.environ[_PERMIT] = before


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
    return file if file is not None and any(file.is_relative_to(folder) for folder in folders) else None


def _load(name: str, manager: Any, folders: Sequence[Path], *, seed: int) -> LoadedTask:
    paper = paper_task(name)
    newer = getattr(manager, "load", None)  # since 0.4.12, with the tasks in one place
    with data_beside(lambda task: _own_file(task, manager, folders), _own_file(name, manager, folders)):
        nested = newer([name]) if newer else manager.load_task_or_group([name])
    leaves = nested["tasks"] if newer else dict(_leaves(nested))
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


def _leaves(nested: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield str(key), value


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
