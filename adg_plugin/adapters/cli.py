"""`adg run` and `adg sft`: training on what was selected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adg_plugin.adapters import recipes
from adg_plugin.config.run_folder import PRIVATE
from adg_plugin.console import message, print_result, say


def run(
    context: typer.Context,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="Keys of `trl sft`, or of Axolotl, and an `adg:` block.")
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override: adg.budget=500, max_steps=20.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Output; default the recipe's output_dir.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all that comes before a model, print the plan.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Select, then train on the selection. The last line on stdout is the folder of the trained model.

    Re-run the same command to resume: the selection from its run folder, TRL's training from its last checkpoint
    (Axolotl's where its `auto_resume_from_checkpoints` says so). On an Axolotl YAML, what follows `--` goes to
    `axolotl train`.
    """
    from adg_plugin.adapters.axolotl import run as axolotl_run
    from adg_plugin.adapters.trl import run as trl_run

    framework = axolotl_run if axolotl_run.is_axolotl(recipe) else trl_run
    plan = framework.make_plan(recipe, set_ or [], out, context.args)
    if dry_run:
        print(*map(message, framework.dry_run(plan)), sep="\n")
        return
    say(*plan.lines())
    summary = framework.run(plan)
    if framework is trl_run:
        say(*trl_run.summary_lines(summary))
    print_result(json.dumps(summary) if as_json else summary["model"])


def sft(context: typer.Context) -> None:
    """Train with all arguments of `trl sft`, selecting first: `--adg_KEY VALUE`, or an `adg:` block in --config.

    Arguments of `accelerate launch` are passed on. `--resume_from_checkpoint` takes a folder, or `true` for the last.
    """
    from adg_plugin.adapters.processes import parent_watchdog, run_stage
    from adg_plugin.adapters.trl import arguments as trl_arguments
    from adg_plugin.adapters.trl.run import launch_command

    if {"-h", "--help"} & set(context.args):
        trl_arguments.print_help()
        return
    request = trl_arguments.read_command(context.args)
    with parent_watchdog(Path(request.training.output_dir, PRIVATE)):
        run_stage("the training", launch_command(request.launch, request.passed))
    print_result(request.training.output_dir)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(context_settings={"allow_extra_args": True})(run)
    passes_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(context_settings=passes_on)(sft)
    app.add_typer(recipes.commands, name="recipes")
