"""`adg show`, `adg explain` and `adg report`: what a finished selection chose, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adg_plugin.console import RunDir, print_json, print_result, result_console


def show(
    run_dir: RunDir,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show at each end of the choice.")] = 10,
) -> None:
    """Show what a selection chose: counts, the parts of the score, the top and bottom rows."""
    from adg_plugin.report.summary import print_summary
    from adg_plugin.store import RunReader
    from adg_plugin.store.json_files import is_run_folder
    from adg_plugin.store.reader import finished

    if is_run_folder(run_dir):
        finished(RunReader(run_dir))
    print_summary(run_dir, result_console(), examples=rows)


def explain(run_dir: RunDir, id: Annotated[str, typer.Argument(metavar="ID", help="Id of a row.")]) -> None:
    """Say why a row was chosen or left out, and what would have changed it."""
    from adg_plugin.report.explain import explain as explained
    from adg_plugin.report.explain import print_explanation

    print_explanation(explained(str(run_dir), id), result_console())


def report(
    run_dir: RunDir,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: report.html in the run folder.")] = None,
    figures: Annotated[Path | None, typer.Option(metavar="DIR", help="Write each figure as PNG and SVG, too.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as JSON on stdout, and write no page.")
    ] = False,
    gpu_hour_price: Annotated[float | None, typer.Option(min=0, help="Price of an hour of one device.")] = None,
) -> None:
    """Write one HTML file that shows a selection, a comparison, or both; it opens from disk.

    The last line on stdout is its path.
    """
    from adg_plugin.report.gather import gather
    from adg_plugin.report.page import need_scripts, write_figures, write_page
    from adg_plugin.store.names import REPORT

    if figures is not None or not as_json:
        need_scripts()
    found = gather(run_dir, gpu_hour_price=gpu_hour_price)
    if figures is not None:
        write_figures(found, figures)
    if as_json:
        print_json(found.about)
        return
    path = out or run_dir / REPORT
    write_page(found, path)
    print_result(path)
