"""A model and names of tasks -> results, by lm-evaluation-harness."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adg_plugin.config.schema import ADGConfig
from adg_plugin.console import say, stderr_is_terminal
from adg_plugin.errors import ADGError, ConfigError, ModelError, OutOfMemoryError, first_line, need
from adg_plugin.store.keys import versions
from adg_plugin.tools.evaluation.evaluated_model import Place, loaded
from adg_plugin.tools.evaluation.kept import Kept, selection_of
from adg_plugin.tools.evaluation.loading import load
from adg_plugin.tools.evaluation.quiet import Remarks, quietened
from adg_plugin.tools.evaluation.results import Evaluation, TaskResult, now, papers_averages, task_results
from adg_plugin.tools.evaluation.tasks import DTYPE, EXTRA, PRESET, WHY, LoadedTask, code_permitted, paper_task, wanted

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
    from adg_plugin.engines.models.inference_state import evaluation_state

    began = time.monotonic()
    names, left_out = wanted(tasks, allow_code=allow_code_execution)
    dtype = dtype or (DTYPE if any(map(paper_task, names)) else "auto")
    loading = {"device": device, "dtype": dtype, "load_in_4bit": load_in_4bit}
    config = _checked(model, loading, limit=limit, batch_size=batch_size, seed=seed, is_kept=results is not None)
    need("lm_eval", extra=EXTRA, why=WHY)
    folders = [Path(folder) for folder in ([include] if isinstance(include, (str, Path)) else include)]
    settings = {
        "limit": limit,
        "seed": seed,
        "batch_size": batch_size,
        "chat_template": chat_template,
        "code_execution": allow_code_execution,
        "include": [str(folder) for folder in folders],
    }
    kept = Kept(None if results is None else Path(results), overwrite, command)
    found_in = versions() | {"lm_eval": version("lm_eval")}
    kept.check(settings=settings, versions=found_in)
    place = Place.of(model, base, revision) if isinstance(model, str) else None
    with (
        quietened(show_bars=show_progress and stderr_is_terminal()) as remarks,
        code_permitted(allow_code_execution),
        # Of any model that is not in memory, the states of its device are nobody's.
        evaluation_state(model, getattr(model, "device", None), seed=seed),
    ):
        ready = load(names, folders, seed=seed, allow_code=allow_code_execution)
        evaluated, tokenizer, about = place.load(config) if place else loaded(model, tokenizer, name)
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise ModelError(f"model {about['name']!r} has no chat template: leave --chat-template out")
        about["name"] = name or about["name"]
        kept.check(model=about)
        selection = None if kept.path is None else selection_of(kept.path)
        blank = Evaluation(about, (), (), left_out, (), settings, found_in, 0.0, selection)
        missing = kept.missing(ready)
        if show_progress and len(missing) < len(ready):
            say(f"{len(ready) - len(missing)} of {len(ready)} tasks are in {kept.path} already")
        # The harness gives the tokenizer a padding token where it has none: a copy, then.
        harness_model = need("lm_eval.models.huggingface", extra=EXTRA, why=WHY).HFLM(
            pretrained=evaluated, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size
        )
        responses = kept.responses(harness_model, remarks, model=about, settings=settings, versions=found_in)
        with responses if missing else nullcontext(harness_model) as lm:
            # One by one: a long protocol says how far it is, and what is found outlives the failure of the next.
            for number, task in enumerate(missing, 1):
                found = _run(task, lm, settings, kept.path if number > 1 else None)
                kept.add(_with(blank, found, remarks, time.monotonic() - began))
                began = time.monotonic()
                if show_progress:
                    for result in found:
                        say(f"{number}/{len(missing)} {result.task}: {result.value:.4f}")
        return kept.with_news(_with(blank, (), remarks, time.monotonic() - began))


def _checked(
    model: Any, loading: dict[str, Any], *, limit: int | None, batch_size: int, seed: int, is_kept: bool
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
    elif is_kept and not isinstance(model, str):
        problems.append("results is given with a model in memory: save the model and give its folder, or leave it out")
    if problems:
        raise ConfigError(problems)
    return ADGConfig.model_validate(loading)


def _run(task: LoadedTask, lm: Any, settings: dict[str, Any], earlier: Path | None) -> list[TaskResult]:
    """Return what the harness finds of one task; `earlier`: where the results of the tasks before it are."""
    began = time.monotonic()
    try:
        raw = need("lm_eval.evaluator", extra=EXTRA, why=WHY).evaluate(
            lm=lm,
            task_dict=dict(task.nested),
            limit=settings["limit"],
            bootstrap_iters=_RESAMPLES,
            log_samples=True,
            apply_chat_template=settings["chat_template"],
            fewshot_as_multiturn=settings["chat_template"],
            confirm_run_unsafe_code=settings["code_execution"],
        )
    except Exception as err:  # all that a harness, its metrics and the tasks' own Python may raise
        raise _failed(task.name, err, settings["batch_size"], earlier) from err
    return task_results(task, raw, round(time.monotonic() - began, 2))


def _failed(task: str, err: Exception, batch_size: int, earlier: Path | None) -> ADGError:
    """Return the error to raise where the harness failed in a task."""
    from adg_plugin.engines.forward.memory import is_out_of_memory

    if is_out_of_memory(err):
        fix = "give a smaller --batch-size" if batch_size > 1 else "use --4bit, --dtype bfloat16 or a smaller model"
        return OutOfMemoryError(f"task {task}: a batch of {batch_size} questions does not fit into memory: {fix}")
    reason = first_line(err) if str(err).strip() else "no message"
    kept = "" if earlier is None else f"; the tasks before it are in {earlier}"
    return ADGError(
        f"task {task} failed ({type(err).__name__}: {reason}): mend its task file, data or Python, or leave it out of "
        f"--tasks{kept}"
    )


def _with(blank: Evaluation, found: Sequence[TaskResult], remarks: Remarks, seconds: float) -> Evaluation:
    """Return the evaluation with these results, their averages and notes."""
    notes = []
    if (limit := blank.settings["limit"]) is not None:
        notes.append(f"at most {limit} questions of each task (--limit): for trying out, not to be quoted")
    if remarks.cut:
        notes.append(
            "some prompts with their worked examples were longer than the model can take, and were cut from the left"
        )
    notes += [
        f"{one.task} is from {one.source}, not the harness's benchmark: it is left out of the paper's averages"
        for one in found
        if one.source is not None and (paper_task(one.task) or paper_task(one.asked or ""))
    ]
    return replace(
        blank,
        tasks=tuple(found),
        averages=papers_averages(found),
        notes=tuple(notes),
        seconds=round(seconds, 2),
        created=now(),
    )
