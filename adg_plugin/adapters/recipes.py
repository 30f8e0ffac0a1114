"""Recipes: those that come with the package, found, shown, copied by `adg recipes`; and what overrides make of one."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from adg_plugin.adapters.secrets import shown
from adg_plugin.config.files import override
from adg_plugin.config.schema import ADGConfig
from adg_plugin.console import print_result
from adg_plugin.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]

commands = typer.Typer(help="Recipes that come with the package.", no_args_is_help=True)


def folder() -> Path:
    """Return the folder of the recipes: in the package once installed, next to it in a working tree."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """Return the recipes' names, such as `trl/cpu-demo`, sorted."""
    root = folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find(name: str) -> Path:
    """Return the path of a recipe by its name, with or without `.yaml`, or its last part; or a ConfigError."""
    wanted = name.removesuffix(".yaml")
    known = names()
    found = [wanted] if wanted in known else [n for n in known if n.rpartition("/")[2] == wanted]
    if len(found) == 1:
        return folder() / f"{found[0]}.yaml"
    if found:
        raise ConfigError([f"{name!r} is several recipes: {', '.join(found)}"])
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(known)}"
    raise ConfigError([f"no recipe is named {name!r}: {hint}"])


def read(name: str) -> str:
    """Return a recipe's text."""
    return find(name).read_text(encoding="utf-8")


@commands.command("ls")
def list_recipes() -> None:
    """List the recipes, each with its first line."""
    for name in names():
        print(f"{name:<40} {read(name).splitlines()[0].lstrip('# ')}")


@commands.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a recipe."""
    sys.stdout.write(read(name))


@commands.command()
def cp(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    to: Annotated[Path, typer.Argument(metavar="FILE", help="File or folder; default here.")] = Path(),
) -> None:
    """Copy a recipe, to change it. The last line on stdout is its path."""
    target = to / find(name).name if to.is_dir() else to
    try:
        with target.open("x", encoding="utf-8") as file:  # exclusively: else a dangling link is written through
            file.write(read(name))
    except FileExistsError:
        raise ConfigError([f"{target} exists already: give another name"]) from None
    except OSError as err:
        raise ConfigError([f"{target} cannot be written ({err.strerror}): give another name"]) from None
    print_result(target)


def with_overrides(
    recipe: dict[str, Any], overrides: Sequence[str], *, of_trainer: Container[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return a recipe after each `--set KEY=VALUE`, and what is wrong with those that cannot be applied.

    Args:
        of_trainer: keys of the trainer; a bare key is its own where the selection has that, too.
    """
    problems = []
    for text in overrides:
        head = text.partition("=")[0].split(".")[0]
        try:
            if head == "adg" or (head in ADGConfig.model_fields and head not in of_trainer):
                recipe = {**recipe, "adg": override(recipe.get("adg") or {}, text)}
            else:
                recipe = override(recipe, text)
        except ValueError as err:
            setting = shown(text)
            problems.append(f"--set {setting}: {err if setting == text else 'its value cannot be read as YAML'}")
    return recipe, problems
