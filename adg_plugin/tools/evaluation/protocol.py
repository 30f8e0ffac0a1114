"""The six benchmarks of the paper, under the names of lm-evaluation-harness, and the averages over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PRESET = "paper"
DTYPE = "bfloat16"  # of the weights, in the authors' script (eval/eval.sh)
ALLOW_CODE = "--allow-code-execution"


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


def paper_dtype(names: Iterable[str]) -> str:
    """Return the weights' type for these tasks: as in the paper if one of its benchmarks is among them, else auto."""
    return DTYPE if any(map(paper_task, names)) else "auto"


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
