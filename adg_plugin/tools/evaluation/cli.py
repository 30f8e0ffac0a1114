"""`adg eval`: how good a model or an adapter is, by lm-evaluation-harness."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from adg_plugin.console import Text, print_json, print_result, result_console
from adg_plugin.tools import evaluation
from adg_plugin.tools.evaluation.kept import results_path

_ALLOW_HELP = (
    "Run code that the model writes, on this machine, with your rights: what mbpp and humaneval measure. The harness "
    "gives it a process and a time limit, which is no sandbox: use a container."
)


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="ADAPTER_OR_MODEL", help="A folder, a hub name, or `demo`; a model or a LoRA adapter."),
    ],
    tasks: Annotated[
        str, typer.Option(metavar="A,B", help="Tasks of lm-evaluation-harness; `paper`: the six of the ADG paper.")
    ] = "paper",
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Questions of each task, for trying out; default all.")
    ] = None,
    include: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Folder of task files, for tasks of your own; repeatable.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_DIR", help="Run folder for the results; default the one that the model was trained from."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the results file, eval/NAME.json; default: from the model's."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The adapter's base, if it is not where the adapter says.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Of the model on the hub, or of the adapter's base.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results of that name, in the place of adding to them.")
    ] = False,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Put questions as chat turns. The paper's protocol is plain text.")
    ] = False,
    allow_code_execution: Annotated[bool, typer.Option("--allow-code-execution", help=_ALLOW_HELP)] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(help="auto, float32, bfloat16, float16. Default: bfloat16 for the paper's benchmarks, else auto."),
    ] = None,
    four_bit: Annotated[bool, typer.Option("--4bit", help="Load the model in 4-bit.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed for sampling few-shot examples; default: the harness's.")
    ] = 1234,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON, in the place of the table.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, warnings only.")] = False,
) -> None:
    """Evaluate a model with lm-evaluation-harness. The last line on stdout is the path of the results.

    They are written after each task. After an interruption, re-run the same command to resume: with the tasks that are
    not there yet, and within a task with the questions that have no response yet.
    """
    path = results_path(model, run=run, name=name, limit=limit)
    found = evaluation.evaluate(
        model,
        tasks=tasks,
        base=base,
        revision=revision,
        name=name,
        include=include or (),
        limit=limit,
        chat_template=chat_template,
        allow_code_execution=allow_code_execution,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        load_in_4bit=four_bit,
        seed=seed,
        results=path,
        overwrite=overwrite,
        command=shlex.join(["adg", *sys.argv[1:]]),
        show_progress=not quiet,
    )
    if as_json:
        print_json(found.summary())
        return
    print_evaluation(found, result_console())
    print_result(path)


def print_evaluation(found: evaluation.Evaluation, console: Console) -> None:
    """Print a line for each task, the averages, what was left out, and what the figures do not say."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("task", overflow="fold")
    for column in ("shots", "rows", "value", "error"):
        table.add_column(column, justify="right")
    table.add_column("metric", overflow="fold")
    for task in found.tasks:
        rows = f"{task.rows:,}" if task.rows == task.rows_in_task else f"{task.rows:,} of {task.rows_in_task:,}"
        shots = "-" if task.shots is None else str(task.shots)
        error = "" if task.stderr is None else f"{task.stderr:.4f}"
        table.add_row(Text(task.task), shots, rows, f"{task.value:.4f}", error, Text(task.metric.removesuffix(",none")))
    console.print(table)
    for average in found.averages:
        missing = f"not given, {', '.join(average.missing)} missing"
        console.print(Text(f"{average.name}: {missing if average.value is None else f'{average.value:.4f}'}"))
    for task_name, reason in found.left_out.items():
        console.print(Text(f"{task_name} left out: {reason}"))
    for note in found.notes:
        console.print(Text(note))
