"""`adg run`: a recipe -> the selection in one process, then the training in others, each going on where it was."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from adg_plugin.adapters.processes import check_free, parent_watchdog, run_stage
from adg_plugin.adapters.secrets import public, shown, unwritten
from adg_plugin.adapters.trl.arguments import RUN_FOLDER, Request, launcher_arguments, read_recipe
from adg_plugin.adapters.trl.choice import last_whole_checkpoint
from adg_plugin.adapters.trl.plan import selection_config
from adg_plugin.config.run_folder import PRIVATE, SELECTION, private_path, publication_problems, run_folder
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, StoreError, redacted
from adg_plugin.pipeline.plan import how_chosen, plan_selection
from adg_plugin.store.files import read_json, replacing, write_json
from adg_plugin.store.keys import changes
from adg_plugin.store.names import REPORT

logger = logging.getLogger(__name__)

# What is private in an output folder: the summary of a finished training, and what its stages are told.
SUMMARY = "adg_summary.json"
_THREADS = "--num_cpu_threads_per_process"
_FINISHED = "%s is finished already: give another --out to do it again"
_RECIPE, _SELECTION, _TRAINING = "adg_recipe.json", "adg_selection_config.json", "adg_training.yaml"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe will do."""

    request: Request
    config: ADGConfig
    out: Path
    run_dir: Path

    def lines(self) -> list[str]:
        """Return the plan for people, a line each."""
        config, request = self.config, self.request
        model = request.model
        how = "LoRA" if model.use_peft else "all weights"
        of_model = " in 4-bit" if model.load_in_4bit else " in 8-bit" if model.load_in_8bit else ""
        checkpoint = last_whole_checkpoint(self.out)
        return [
            f"pool       {', '.join(redacted(spec.path) for spec in config.datasets)}",
            f"selection  {config.budget} rows, {how_chosen(config)}",
            f"training   {model.model_name_or_path}{of_model}, {how}",
            f"launch     accelerate launch {shown(*request.launch) or '(its defaults)'}",
            f"output     {self.out}",
            f"run folder {self.run_dir}",
            f"starts     {'from ' + str(checkpoint) if checkpoint else 'at the selection'}",
        ]


def make_plan(recipe: Path, overrides: Sequence[str] = (), out: Path | None = None, passed: Sequence[str] = ()) -> Plan:
    """Return what the recipe will do after `key=value` overrides, checked; no model is loaded.

    Raises:
        ConfigError: with every mistake in the recipe, or in the place of all that if anything is `passed` on.
        DataError: a pool that cannot be selected from.
    """
    if passed:
        raise ConfigError([f"{' '.join(passed)}: adg run takes one recipe of TRL; change its keys with --set"])
    request = read_recipe(recipe, overrides)
    folder = Path(run_folder(out, request.trainer.get("output_dir"), settings=recipe))
    run_dir = Path(run_folder(request.adg.get("output_dir"), training=folder))
    if request.training.push_to_hub and (problems := publication_problems(run_dir, folder)):
        raise ConfigError(problems, source=str(recipe))
    return Plan(request, selection_config(request, run_dir), folder, run_dir)


def dry_run(plan: Plan) -> list[str]:
    """Return the plan, a line each, after the checks of `run` before a model loads; a StoreError as `check_output`."""
    check_output(plan)
    if _summary(plan) is not None:
        return [*plan.lines(), _FINISHED % plan.out]
    selection = plan_selection(plan.config, str(plan.run_dir), for_training=True, own=True)
    return [*plan.lines(), f"rows       {selection.rows()}"]


def check_output(plan: Plan) -> None:
    """Raise a StoreError where the output folder is in use, or belongs to another recipe; nothing is written."""
    check_free(plan.out / PRIVATE)
    _refuse_other_recipe(plan)


def run(plan: Plan) -> dict[str, Any]:
    """Select, train, and return the summary. What was done before by the same recipe is not done again.

    Raises:
        StoreError: the output folder is in use, or belongs to another recipe.
        StageError: a stage failed.
    """
    with parent_watchdog(plan.out / PRIVATE):
        _refuse_other_recipe(plan)
        write_json(plan.out / PRIVATE / _RECIPE, _recipe(plan))
        _take_over_older(plan.out)
        if (summary := _summary(plan, _Summary)) is not None:
            logger.warning(_FINISHED, plan.out)
            return summary
        _select(plan)
        _train(plan)
        summary = _summary(plan)
    assert summary is not None  # the stage writes it, or fails
    return summary


class _Rows(BaseModel):
    pool: int
    chosen: int
    trained: int


class _Summary(BaseModel):
    """What `summary_lines` needs of a summary."""

    rows: _Rows
    losses: list[list[float]]
    steps: int
    tokens: int
    seconds: float
    mean_loss: float
    kind: str
    model: str
    run_folder: str


def _summary(plan: Plan, shape: type[BaseModel] | None = None) -> dict[str, Any] | None:
    fix = "delete it and run the same command again"
    return read_json(private_path(plan.out, SUMMARY), fix=fix, shape=shape)


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return for people what a training did: rows, tokens, steps, losses and where things are."""
    rows, losses = summary["rows"], summary["losses"]
    packed = f", packed into {rows['sequences']} sequences" if "sequences" in rows else ""
    ends = [losses[0], losses[-1]] if losses else []
    curve = "".join(f"{loss:.3f} at step {step}, " for step, loss in ends)
    report = Path(summary["run_folder"]) / REPORT
    return [
        f"rows     {rows['pool']} in the pool, {rows['chosen']} chosen, {rows['trained']} trained{packed}",
        f"training {summary['steps']} steps, {summary['tokens']:,} tokens, {summary['seconds']:.0f} s",
        f"loss     {curve}mean {summary['mean_loss']:.3f}",
        f"{summary['kind']}  {summary['model']}",
        f"selection {summary['run_folder']}",
        *([f"report   {report}"] if report.is_file() else []),
    ]


def _recipe(plan: Plan) -> dict[str, Any]:
    """Return what tells a recipe from others, by key."""
    mine = {f"adg.{key}": value for key, value in plan.config.model_dump(mode="json", exclude_unset=True).items()}
    mine |= {key: value for key, value in public(plan.request.trainer).items() if key != "output_dir"}
    if plan.request.adg.get("output_dir"):
        mine["adg.output_dir"] = str(plan.run_dir.resolve())
    else:
        del mine["adg.output_dir"]
    return dict(json.loads(json.dumps(mine, default=str)))


def _refuse_other_recipe(plan: Plan) -> None:
    """Raise a StoreError naming each key in which another recipe differs that has begun the output folder."""
    before = read_json(private_path(plan.out, _RECIPE), fix="give another --out")
    if before is None:
        return
    before = public(before)  # version 0.2 wrote all of it
    if before.get("adg.output_dir") == str((plan.out / SELECTION).resolve()):
        del before["adg.output_dir"]  # its default
    if found := changes(before, _recipe(plan)):
        raise StoreError(
            f"{plan.out} was begun with {', '.join(found.values())}: go back to that, give another --out, or delete it"
        )


def _take_over_older(out: Path) -> None:
    """Take what version 0.2 wrote into an output folder out of what is uploaded: it holds paths, even tokens."""
    if (summary := out / SUMMARY).is_file():
        summary.replace(out / PRIVATE / SUMMARY)
    for name in (_RECIPE, _SELECTION, _TRAINING):
        (out / name).unlink(missing_ok=True)


def _select(plan: Plan) -> None:
    path = plan.out / PRIVATE / _SELECTION
    settings = plan.config.model_dump(exclude_unset=True)
    write_json(path, public(settings))
    stage = ["-m", "adg_plugin.adapters.selection_process", str(path), str(plan.run_dir)]
    model = plan.request.model
    if plan.config.model != model.model_name_or_path:  # the rows are written as the trained model reads them
        stage += [str(model.model_name_or_path), str(model.model_revision)]
    run_stage("the selection", stage, unwritten(settings))


def _train(plan: Plan) -> None:
    keys = {**plan.request.trainer, "output_dir": str(plan.out), RUN_FOLDER: str(plan.run_dir)}
    checkpoint = last_whole_checkpoint(plan.out)
    keys["resume_from_checkpoint"] = None if checkpoint is None else str(checkpoint)
    path = plan.out / PRIVATE / _TRAINING
    with replacing(path) as sink:
        sink.write(yaml.safe_dump(public(keys), sort_keys=False, allow_unicode=True).encode())
    command = launch_command(plan.request.launch, ["--config", str(path)])
    run_stage("the training", command, {**unwritten(keys), "env": plan.request.env})


def launch_command(launch: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the arguments of Python that start the training script by `accelerate launch`."""
    import torch

    flags = launcher_arguments(launch)
    given = dict(pairwise([*flags, ""])) | dict(flag.split("=", 1) for flag in flags if "=" in flag)
    if not (torch.accelerator.is_available() or _THREADS in given or "OMP_NUM_THREADS" in os.environ):
        # All cores of a CPU: accelerate would give a process one.
        named = given.get("--num_processes", "1")
        processes = max(1, int(named)) if named.isdecimal() else 1
        if processes > 1:  # threads that wait by spinning would keep those of the other processes from work
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        flags += [_THREADS, str(max(1, (os.cpu_count() or 1) // processes))]
    return ["-m", "accelerate.commands.launch", *flags, "--module", "adg_plugin.adapters.trl.script", *arguments]
