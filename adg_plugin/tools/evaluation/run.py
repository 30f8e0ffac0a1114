"""A model and names of tasks -> results, by lm-evaluation-harness."""

from __future__ import annotations

import copy
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ADGError, ConfigError, ModelError, need
from adg_plugin.store.versions import versions
from adg_plugin.tools.evaluation.evaluated_model import EvaluatedModel, Place, loaded, no_room
from adg_plugin.tools.evaluation.kept import Kept
from adg_plugin.tools.evaluation.places import selection_of
from adg_plugin.tools.evaluation.protocol import PRESET, paper_dtype, paper_task
from adg_plugin.tools.evaluation.quiet import Remarks, quietened
from adg_plugin.tools.evaluation.readings import read_results
from adg_plugin.tools.evaluation.results import Evaluation, TaskResult, now, papers_averages
from adg_plugin.tools.evaluation.task_files import readable
from adg_plugin.tools.evaluation.tasks import EXTRA, WHY, LoadedTask, code_permitted, load, wanted

HARNESS_SEED = 1234  # the harness's own default, so that a figure compares with others'
BATCH_SIZE = 8
_RESAMPLES = 1000  # for the standard errors of metrics that have no formula for it


def evaluate(
    model: Any,
    *,
    tasks: str | Sequence[str] = PRESET,
    tokenizer: Any = None,
    base: str | None = None,
    revision: str | None = None,
    name: str | None = None,
    include: Path | str | Sequence[Path | str] = (),
    limit: int | None = None,
    chat_template: bool = False,
    allow_code_execution: bool = False,
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
    dtype: str | None = None,
    load_in_4bit: bool = False,
    seed: int = HARNESS_SEED,
    results: Path | str | None = None,
    overwrite: bool = False,
    command: str = "",
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
        revision: of the model on the hub, or of the adapter's base; None: the one that the adapter names, or the
            newest.
        name: of the model in the results; None: as it is given.
        include: folders with task files.
        limit: questions per task, of a group for each of its tasks; None: all.
        chat_template: whether questions are put as chat turns; the paper's protocol is plain text.
        allow_code_execution: whether code that the model writes may be run on this machine (mbpp, humaneval).
        batch_size: questions at a time.
        device: `auto`, `cpu`, `cuda`, ...; of a model in memory, where it is.
        dtype: `auto`, `float32`, `bfloat16`, `float16`; None: bfloat16 if a benchmark of the paper is among the tasks,
            else auto. Of a model in memory, what it is.
        load_in_4bit: whether to load the model with bitsandbytes in 4-bit.
        seed: of the draw of worked examples, and of whatever a task samples.
        results: file of results to write after each task. One that is there is added to, and its tasks are not run
            again. Not for a model in memory, whose weights nothing tells from others later.
        overwrite: whether what is in `results` is to be replaced.
        command: to be kept in `results`.
        show_progress: whether the harness may draw its bars on stderr.

    Raises:
        ADGError: the harness failed in a task; names it.
        ConfigError: a setting, a task's name or `include` is wrong, or a task runs code and that is not allowed.
        DataError: a task's data or file cannot be had, or a benchmark of the paper lacks the paper's metric.
        ModelError: the model or its tokenizer cannot be loaded, or has no chat template.
        OutOfMemoryError: a batch does not fit.
        StoreError: `results` has those of another model or other settings, or cannot be written.
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    clock = _Clock()
    names, left_out = wanted(tasks, allow_code=allow_code_execution)
    dtype = dtype or paper_dtype(names)
    loading = _settings(
        model, device, dtype, load_in_4bit, limit=limit, batch_size=batch_size, seed=seed, results=results
    )
    need("lm_eval", extra=EXTRA, why=WHY)
    folders = [Path(f) for f in ([include] if isinstance(include, (str, Path)) else include)]
    asked = {
        "limit": limit,
        "seed": seed,
        "batch_size": batch_size,
        "chat_template": chat_template,
        "code_execution": allow_code_execution,
        "include": [str(folder) for folder in folders],
    }
    kept = Kept(None if results is None else Path(results), overwrite, command)
    found_in = versions() | {"lm_eval": version("lm_eval")}
    kept.check(settings=asked, versions=found_in)
    place = Place.of(model, base, revision) if isinstance(model, str) else None
    with (
        quietened(show_bars=show_progress and sys.stderr.isatty()) as remarks,
        readable(folders) as copies,
        code_permitted(allow_code_execution),
        _random_states(model, seed),
    ):
        ready = load(names, copies, seed=seed, allow_code=allow_code_execution)
        evaluated = place.load(loading) if place else loaded(model, tokenizer, name)
        if chat_template and not getattr(evaluated.tokenizer, "chat_template", None):
            raise ModelError(f"model {evaluated.about['name']!r} has no chat template: leave --chat-template out")
        about = {**evaluated.about, **({"name": name} if name else {})}
        kept.check(model=about)
        selection = None if kept.path is None else selection_of(kept.path)
        blank = Evaluation(about, (), (), left_out, (), asked, found_in, 0.0, selection)
        missing = kept.missing(ready)
        if show_progress and len(missing) < len(ready):
            print(f"{len(ready) - len(missing)} of {len(ready)} tasks are in {kept.path} already", file=sys.stderr)
        with _evaluation_mode(evaluated.model):
            _run(
                evaluated,
                missing,
                lambda found: kept.add(_news(blank, found, remarks, clock)),
                kept.path,
                show_progress=show_progress,
                batch_size=batch_size,
                limit=limit,
                bootstrap_iters=_RESAMPLES,
                log_samples=True,
                apply_chat_template=chat_template,
                fewshot_as_multiturn=chat_template,
                confirm_run_unsafe_code=allow_code_execution,
            )
        return kept.with_news(_news(blank, (), remarks, clock))


class _Clock:
    """Tells the seconds since it was last asked."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def lap(self) -> float:
        before, self._since = self._since, time.monotonic()
        return round(self._since - before, 2)


def _settings(
    model: Any,
    device: str,
    dtype: str,
    load_in_4bit: bool,
    *,
    limit: int | None,
    batch_size: int,
    seed: int,
    results: Path | str | None,
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
    elif results is not None and not isinstance(model, str):
        problems.append("results is given with a model in memory: save the model and give its folder, or leave it out")
    if problems:
        raise ConfigError(problems)
    return ADGConfig.model_validate({"device": device, "dtype": dtype, "load_in_4bit": load_in_4bit})


def _run(
    evaluated: EvaluatedModel,
    tasks: Sequence[LoadedTask],
    add: Callable[[Sequence[TaskResult]], None],
    path: Path | None,
    *,
    show_progress: bool,
    batch_size: int,
    **options: Any,
) -> None:
    """Run one task after the other, and `add` what each gave: a long protocol says how far it is, and can be cut off.

    Raises:
        ADGError: the harness failed in a task; what was added before stays.
    """
    harness = need("lm_eval.evaluator", extra=EXTRA, why=WHY)
    wrapper = need("lm_eval.models.huggingface", extra=EXTRA, why=WHY).HFLM
    # The harness gives the tokenizer a padding token where it has none: a copy, then.
    wrapped = wrapper(pretrained=evaluated.model, tokenizer=copy.deepcopy(evaluated.tokenizer), batch_size=batch_size)
    for number, task in enumerate(tasks, 1):
        began = time.monotonic()
        try:
            raw = harness.evaluate(lm=wrapped, task_dict=dict(task.nested), **options)
        except Exception as err:  # all that a harness, its metrics and the tasks' own Python may raise
            raise _failed(task.name, err, batch_size, path if number > 1 else None) from err
        found = read_results(task, raw, round(time.monotonic() - began, 2))
        add(found)
        if show_progress:
            for result in found:
                print(f"{number}/{len(tasks)} {result.task}: {result.value:.4f}", file=sys.stderr)


def _failed(task: str, err: Exception, batch_size: int, path: Path | None) -> ADGError:
    """Return the error to raise where the harness failed in a task."""
    from adg_plugin.engines.forward.memory import is_out_of_memory

    if is_out_of_memory(err):
        return no_room(batch_size, task)
    first = (str(err).strip() or "no message").splitlines()[0]
    kept = "" if path is None else f"; the tasks before it are in {path}"
    return ADGError(
        f"task {task} failed ({type(err).__name__}: {first}): mend its task file, data or Python, or leave it out of "
        f"--tasks{kept}"
    )


def _news(blank: Evaluation, found: Sequence[TaskResult], remarks: Remarks, clock: _Clock) -> Evaluation:
    """Return the evaluation with these results, and all that is to be said of them."""
    return replace(
        blank,
        tasks=tuple(found),
        averages=papers_averages(found),
        notes=tuple(_notes(remarks, blank.settings["limit"], found)),
        seconds=clock.lap(),
        created=now(),
    )


def _notes(remarks: Remarks, limit: int | None, found: Sequence[TaskResult]) -> Iterator[str]:
    if limit is not None:
        yield f"at most {limit} questions of each task (--limit): for trying out, not to be quoted"
    if remarks.cut:
        yield "some prompts with their worked examples were longer than the model can take, and were cut from the left"
    for result in found:
        if result.source is not None and (paper_task(result.task) or paper_task(result.asked or "")):
            yield (
                f"{result.task} is from {result.source}, not the harness's benchmark: it is left out of the paper's "
                "averages"
            )


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
