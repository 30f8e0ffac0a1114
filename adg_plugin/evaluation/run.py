"""A model and names of tasks -> results, by lm-evaluation-harness."""

from __future__ import annotations

import copy
import logging
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adg_plugin.config import ADGConfig
from adg_plugin.errors import ConfigError, ModelError, need
from adg_plugin.evaluation.protocol import PRESET, averages
from adg_plugin.evaluation.quiet import Remarks, quietened
from adg_plugin.evaluation.results import Evaluation, TaskResult
from adg_plugin.evaluation.subject import Place, Subject, loaded, no_room
from adg_plugin.evaluation.task_files import readable
from adg_plugin.evaluation.tasks import EXTRA, WHY, LoadedTask, code_permitted, load, wanted
from adg_plugin.manifest import versions

HARNESS_SEED = 1234  # the harness's own default, so that a figure compares with others'
BATCH_SIZE = 8
_RESAMPLES = 1000  # for the standard errors of metrics that have no formula for it

log = logging.getLogger(__name__)


def evaluate(
    model: Any,
    *,
    tasks: str | Sequence[str] = PRESET,
    tokenizer: Any = None,
    base: str | None = None,
    name: str | None = None,
    include: Path | str | Sequence[Path | str] = (),
    limit: int | None = None,
    chat_template: bool = False,
    allow_code_execution: bool = False,
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
    dtype: str = "auto",
    load_in_4bit: bool = False,
    seed: int = HARNESS_SEED,
    show_progress: bool = False,
) -> Evaluation:
    """Return what the tasks of lm-evaluation-harness say of a model.

    The tasks' data are read before the model is loaded. A model in memory is left as it was, and so are the random
    states of torch, numpy and Python.

    Args:
        model: a folder or hub name of a model or of a LoRA adapter, `demo`, or a model in memory, which PEFT may have
            wrapped; its adapters stay switched on.
        tasks: names of the harness's tasks, separated by commas or as a list; `paper` is the paper's protocol.
        tokenizer: of a model in memory.
        base: the adapter's base, in the place of the one that it names.
        name: of the model in the results; None: as it is given.
        include: folders with task files.
        limit: questions per task, of a group for each of its tasks; None: all.
        chat_template: whether questions are put as chat turns; the paper's protocol is plain text.
        allow_code_execution: whether code that the model writes may be run on this machine (mbpp, humaneval).
        batch_size: questions at a time.
        device: `auto`, `cpu`, `cuda`, ...; of a model in memory, where it is.
        dtype: `auto`, `float32`, `bfloat16`, `float16`; of a model in memory, what it is.
        load_in_4bit: whether to load the model with bitsandbytes in 4-bit.
        seed: of the draw of worked examples, and of whatever a task samples.
        show_progress: whether the harness may draw its bars on stderr.

    Raises:
        ConfigError: a setting, a task's name or `include` is wrong, or a task runs code and that is not allowed.
        DataError: a task's data or file cannot be had.
        ModelError: the model or its tokenizer cannot be loaded, or has no chat template.
        OutOfMemoryError: a batch does not fit.
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    began = time.monotonic()
    settings = _settings(model, device, dtype, load_in_4bit, limit=limit, batch_size=batch_size, seed=seed)
    names, left_out = wanted(tasks, allow_code=allow_code_execution)
    need("lm_eval", extra=EXTRA, why=WHY)
    place = Place.of(model, base) if isinstance(model, str) else None
    folders = [Path(f) for f in ([include] if isinstance(include, (str, Path)) else include)]
    with (
        quietened(show_bars=show_progress and sys.stderr.isatty()) as remarks,
        readable(folders) as copies,
        code_permitted(allow_code_execution),
        _random_states(model, seed),
    ):
        ready = load(names, copies, seed=seed, allow_code=allow_code_execution)
        subject = place.load(settings) if place else loaded(model, tokenizer, name)
        if chat_template and not getattr(subject.tokenizer, "chat_template", None):
            raise ModelError(f"model {subject.about['name']!r} has no chat template: leave --chat-template out")
        with _evaluation_mode(subject.model):
            results = _results(
                subject,
                ready,
                remarks,
                show_progress=show_progress,
                batch_size=batch_size,
                limit=limit,
                bootstrap_iters=_RESAMPLES,
                log_samples=True,
                apply_chat_template=chat_template,
                fewshot_as_multiturn=chat_template,
                confirm_run_unsafe_code=allow_code_execution,
            )
    return Evaluation(
        model={**subject.about, **({"name": name} if name else {})},
        tasks=tuple(results),
        averages=averages({result.task: result.value for result in results}),
        left_out=left_out,
        notes=tuple(_notes(subject, remarks, limit)),
        settings={
            "limit": limit,
            "seed": seed,
            "batch_size": batch_size,
            "chat_template": chat_template,
            "code_execution": allow_code_execution,
            "include": [str(folder) for folder in folders],
        },
        versions=versions() | {"lm_eval": version("lm_eval")},
        seconds=round(time.monotonic() - began, 2),
    )


def _settings(
    model: Any, device: str, dtype: str, load_in_4bit: bool, *, limit: int | None, batch_size: int, seed: int
) -> ADGConfig:
    """Return how the model is to be loaded, after a look at the numbers."""
    problems = []
    if limit is not None and limit < 1:
        problems.append(f"limit is {limit}: use 1 or more, or none for all questions")
    if batch_size < 1:
        problems.append(f"batch_size is {batch_size}: use 1 or more")
    if not 0 <= seed < 2**32:
        problems.append(f"seed is {seed}: use 0 to {2**32 - 1}")
    if isinstance(model, Path):
        problems.append(f"model is a Path: give it as a string, {str(model)!r}")
    if problems:
        raise ConfigError(problems)
    return ADGConfig.model_validate({"device": device, "dtype": dtype, "load_in_4bit": load_in_4bit})


def _results(
    subject: Subject,
    tasks: Sequence[LoadedTask],
    remarks: Remarks,
    *,
    show_progress: bool,
    batch_size: int,
    **options: Any,
) -> list[TaskResult]:
    """Return the results of one task after the other, so that a long protocol says how far it is."""
    from adg_plugin.engines.memory import is_out_of_memory

    harness = need("lm_eval.evaluator", extra=EXTRA, why=WHY)
    wrapper = need("lm_eval.models.huggingface", extra=EXTRA, why=WHY).HFLM
    # The harness gives the tokenizer a padding token where it has none: a copy, then.
    wrapped = wrapper(pretrained=subject.model, tokenizer=copy.deepcopy(subject.tokenizer), batch_size=batch_size)
    found: list[TaskResult] = []
    for number, task in enumerate(tasks, 1):
        began = time.monotonic()
        try:
            raw = harness.evaluate(lm=wrapped, task_dict=dict(task.nested), **options)
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
            raise no_room(batch_size) from err
        news = read_results(task, raw, round(time.monotonic() - began, 2))
        found += news
        if show_progress:
            for result in news:
                print(f"{number}/{len(tasks)} {result.task}: {result.value:.4f}", file=sys.stderr)
    return found


def read_results(task: LoadedTask, raw: Mapping[str, Any], seconds: float) -> list[TaskResult]:
    """Return the result of a task or a group from the harness's; of a group or tag without one, those of its tasks."""
    table = {**raw["results"], **raw.get("groups", {})}
    if _numbers(table.get(task.name, {})):
        return [_result(task, task.name, list(task.leaves), table[task.name], raw, seconds)]
    return [_result(task, leaf, [leaf], table[leaf], raw, seconds) for leaf in task.leaves if _numbers(table[leaf])]


def _result(
    task: LoadedTask, name: str, leaves: Sequence[str], entry: Mapping[str, Any], raw: Mapping[str, Any], seconds: float
) -> TaskResult:
    numbers = _numbers(entry)
    metric = task.metric if task.metric in numbers else next(iter(numbers))
    what, _, chosen = metric.partition(",")
    counts = [raw["n-samples"][leaf] for leaf in leaves]
    return TaskResult(
        task=name,
        shots=task.shots if len(leaves) == len(task.leaves) else int(raw["n-shot"][name]),
        metric=metric,
        value=numbers[metric],
        stderr=_finite(entry.get(f"{what}_stderr,{chosen}")),
        rows=sum(count["effective"] for count in counts),
        rows_in_task=sum(count["original"] for count in counts),
        seconds=seconds,
        metrics=numbers,
        parts={leaf: raw["results"][leaf].get(metric) for leaf in leaves if name not in leaves},
        row_values=_row_values([raw["samples"][leaf] for leaf in leaves], what, chosen),
    )


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics in an entry of the harness's results, by their keys, in its order."""
    values = {key: _finite(value) for key, value in entry.items() if "," in key and "_stderr," not in key}
    return {key: value for key, value in values.items() if value is not None}


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _row_values(parts: Sequence[Sequence[Mapping[str, Any]]], metric: str, chosen: str) -> tuple[float, ...]:
    """Return the metric's value for each question; nothing where it has none of a single question (a corpus's BLEU)."""
    samples = [s for part in parts for s in sorted(part, key=lambda s: int(s["doc_id"])) if s["filter"] == chosen]
    values = [_finite(sample.get(metric)) for sample in samples]
    return tuple(value for value in values if value is not None) if None not in values else ()


def _notes(subject: Subject, remarks: Remarks, limit: int | None) -> Iterator[str]:
    if limit is not None:
        yield f"at most {limit} questions of each task (--limit): for trying out, not to be quoted"
    if remarks.cut:
        yield "some prompts with their worked examples were longer than the model can take, and were cut from the left"


@contextmanager
def _random_states(model: Any, seed: int) -> Iterator[None]:
    """Seed the random states of Python, numpy and torch; put them back afterwards."""
    import numpy as np
    import torch

    device = getattr(model, "device", None)  # of a model in memory; of any other, the states of its device are nobody's
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
