"""`adg show` and `adg explain`: what a finished selection chose, and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run folder of a finished selection.")]


def show(
    run_dir: RunDir,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show at each end of the choice.")] = 10,
) -> None:
    """Show what a selection chose: counts, the parts of the score, the top and bottom rows."""
    from adg_plugin.explain import finished
    from adg_plugin.store import RunFolder
    from adg_plugin.summary import print_summary

    finished(RunFolder.read(run_dir))
    print_summary(run_dir, Console(width=None if sys.stdout.isatty() else 120), examples=rows)


def explain(run_dir: RunDir, id: Annotated[str, typer.Argument(metavar="ID", help="Id of a row.")]) -> None:
    """Say why a row was chosen or left out, and what would have changed it."""
    from adg_plugin.explain import explain as explained
    from adg_plugin.explain_view import print_explanation

    console = Console(width=None if sys.stdout.isatty() else 120)
    print_explanation(explained(str(run_dir), id), console)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(show)
    app.command()(explain)
