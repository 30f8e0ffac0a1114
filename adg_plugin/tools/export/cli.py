"""`adg export`: the chosen rows as a file that other tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from adg_plugin.console import RunDir


def export(
    run_dir: RunDir,
    form: Annotated[
        Literal["json", "jsonl", "parquet", "csv"], typer.Option("--format", help="json is one array.")
    ] = "json",
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Columns of the rows, and adg_id, adg_score, adg_bin, ...; default: all."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: export.FORMAT in the run folder.")] = None,
) -> None:
    """Write the chosen rows, best first, as other tools load them. The last line on stdout is the path."""
    from adg_plugin.tools.export.export import export as exported

    names = [] if columns is None else [name.strip() for name in columns.split(",")]
    print(exported(run_dir, form, columns=names, out=out))


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(export)
