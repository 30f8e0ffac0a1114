"""`adg run`, `adg sft` and `adg recipes`: training on what was selected."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adg_plugin.adapters import recipes
from adg_plugin.errors import ConfigError

_console = Console(stderr=True)
_recipes = typer.Typer(help="Recipes that come with the package.", no_args_is_help=True)


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
    from adg_plugin.adapters.trl import run as recipe_run
    from adg_plugin.adapters.trl.summary import print_training

    passed = context.args
    if axolotl_run.is_axolotl(recipe):
        axolotl = axolotl_run.make_plan(recipe, set_ or [], out, passed)
        if dry_run:
            print("\n".join(axolotl_run.dry_run(axolotl)))
            return
        _show(axolotl.lines())
        folder = axolotl_run.run(axolotl)
        print(json.dumps({"model": str(folder)}) if as_json else folder)
        return
    if passed:
        raise ConfigError([f"{' '.join(passed)}: adg run takes one recipe of TRL; change its keys with --set"])
    plan = recipe_run.make_plan(recipe, set_ or [], out)
    if dry_run:
        print("\n".join(recipe_run.dry_run(plan)))
        return
    _show(plan.lines())
    summary = recipe_run.run(plan)
    print_training(summary, _console)
    print(json.dumps(summary) if as_json else summary["model"])


def _show(plan: list[str]) -> None:
    for line in plan:
        _console.print(line, highlight=False, soft_wrap=True, markup=False)


def sft(context: typer.Context) -> None:
    """Train with all arguments of `trl sft`, selecting first: `--adg_KEY VALUE`, or an `adg:` block in --config.

    Arguments of `accelerate launch` are passed on. `--resume_from_checkpoint` takes a folder, or `true` for the last.
    """
    from adg_plugin.adapters.processes import parent_watchdog, run_stage
    from adg_plugin.adapters.trl import arguments as trl_arguments
    from adg_plugin.adapters.trl.run import launch_command

    arguments = list(context.args)
    if {"-h", "--help"} & set(arguments):
        trl_arguments.print_help()
        return
    request = trl_arguments.check(trl_arguments.read_command(arguments))
    with parent_watchdog(Path(request.training.output_dir)):
        run_stage("the training", launch_command(request.launch, request.passed))
    print(request.training.output_dir)


@_recipes.command("ls")
def list_recipes() -> None:
    """List the recipes, each with its first line."""
    for name in recipes.names():
        print(f"{name:<40} {recipes.title(name)}")


@_recipes.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a recipe."""
    sys.stdout.write(recipes.read(name))


@_recipes.command()
def cp(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    to: Annotated[Path, typer.Argument(metavar="FILE", help="File or folder; default here.")] = Path(),
) -> None:
    """Copy a recipe, to change it. The last line on stdout is its path."""
    print(recipes.copy(name, to))


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(context_settings={"allow_extra_args": True})(run)
    passes_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(context_settings=passes_on)(sft)
    app.add_typer(_recipes, name="recipes")
