"""Which tasks are run: the six benchmarks of the paper, under the names of lm-evaluation-harness, or any others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from adg_plugin.errors import ConfigError
from adg_plugin.store.files import digest_bytes

WHY = "adg eval"
EXTRA = "eval"
PRESET = "paper"
DTYPE = "bfloat16"  # of the weights, in the authors' script (eval/eval.sh); for other tasks it is auto
ALLOW_CODE = "--allow-code-execution"
_RUNS_CODE = f"it runs code that the model wrote on this machine: {ALLOW_CODE} permits that"
_PERMIT = "HF_ALLOW_CODE_EVAL"  # without it, the `code_eval` metric runs nothing


@dataclass(frozen=True, slots=True)
class PaperTask:
    """One benchmark as the paper runs it.

    Attributes:
        name: of the harness's task or group of tasks.
        shots: worked examples before each question.
        metric: the harness's key, `METRIC,FILTER`.
        area: which average it belongs to.
        runs_code: whether it runs what the model writes.
    """

    name: str
    shots: int
    metric: str
    area: str
    runs_code: bool = False


# Source: arXiv 2604.10448 for benchmarks and shots, the authors' eval/eval.sh for the names of the harness's tasks and
# the type of the weights. Which metric of each stands for it is chosen here: the first.
# - bbh: 27 tasks with chain-of-thought prompts and three fixed examples each, weighted by their size.
# - gsm8k draws its examples from the training split, by the seed; `gsm8k_cot` has eight fixed ones, and marks its
#   answers in another way. The strict match wants an answer marked as in the examples; the flexible one, which takes
#   the last number, is in `metrics`.
# - mmlu: 57 tasks that compare the letters' likelihoods, weighted by their size; the first examples of each task.
# - truthfulqa_mc2 has six examples in the prompt itself, and none besides.
# - mbpp: the first of the three fixed examples that come with the task.
PAPER = (
    PaperTask("bbh", 3, "exact_match,get-answer", "reasoning"),
    PaperTask("gsm8k", 8, "exact_match,strict-match", "reasoning"),
    PaperTask("mmlu", 4, "acc,none", "knowledge"),
    PaperTask("truthfulqa_mc2", 0, "acc,none", "knowledge"),
    PaperTask("mbpp", 1, "pass_at_1,none", "code", runs_code=True),
    PaperTask("humaneval", 0, "pass@1,create_test", "code", runs_code=True),
)


@dataclass(frozen=True, slots=True)
class Average:
    """The plain mean of the benchmarks of an area.

    Attributes:
        value: None where a benchmark is missing: a mean of the others is another quantity.
        missing: the benchmarks without a value.
    """

    name: str
    value: float | None
    missing: tuple[str, ...] = ()


def paper_task(name: str) -> PaperTask | None:
    """Return how the paper runs the task of that name, or None for one that it does not use."""
    return next((task for task in PAPER if task.name == name), None)


def averages(values: Mapping[str, float]) -> tuple[Average, ...]:
    """Return the averages over reasoning, knowledge, code, and all six benchmarks, each with equal weight.

    Args:
        values: of the tasks, by name; those that the paper does not use are passed over. Without any of its six, there
            is nothing to average, and nothing is returned.

    Source: arXiv 2604.10448.
    """
    if not any(task.name in values for task in PAPER):
        return ()
    groups = {area: [task.name for task in PAPER if task.area == area] for area in ("reasoning", "knowledge", "code")}
    groups["overall"] = [task.name for task in PAPER]
    found = []
    for name, tasks in groups.items():
        missing = tuple(task for task in tasks if task not in values)
        mean = None if missing else sum(values[task] for task in tasks) / len(tasks)
        found.append(Average(name, mean, missing))
    return tuple(found)


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
            refused.append(refusal(name))
        names.append(name)
    if refused:
        raise ConfigError(refused)
    if not names:
        raise ConfigError([f"tasks is empty: name tasks of lm-evaluation-harness, or {PRESET}"])
    return list(dict.fromkeys(names)), left_out


def refusal(name: str) -> str:
    """Return what is said of a task that runs code, where that is not allowed."""
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
