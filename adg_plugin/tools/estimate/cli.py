"""`adg estimate`: what a selection will take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from adg_plugin.console import result_console

if TYPE_CHECKING:
    from adg_plugin.tools.estimate.extrapolate import Estimate


def estimate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings, flat or in an `adg:` block.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Run folder; default runs/NAME-OF-CONFIG.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=2, help="Rows to measure; default three full batches, or half of a small pool.")
    ] = None,
    gpu_hour_price: Annotated[float | None, typer.Option(min=0, help="Price of an hour of one device.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Say what a selection will take: time, tokens, memory, disk, cost. A few batches are measured, and kept.

    With several ranks or Ray workers, sampling takes so many times less, and the cost stays.
    """
    from adg_plugin.config.run_folder import load_selection
    from adg_plugin.errors import ConfigError
    from adg_plugin.tools.estimate.estimate import estimate as estimated

    settings, where = load_selection(config, set_, out)
    if "://" in where:
        problem = f"output_dir is {where!r}: adg estimate measures into a folder; give one with --out"
        raise ConfigError([problem], source=str(config))
    found = estimated(settings, Path(where), rows=rows, show_progress=not quiet)
    if as_json:
        print(json.dumps(found.summary(gpu_hour_price), indent=2))
    else:
        print_estimate(found, result_console(), gpu_hour_price)


def print_estimate(about: Estimate, console: Console, price: float | None = None) -> None:
    """Print the figures, a line each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("time", f"{_clock(about.total_s)} ({_clock(about.low_s)} to {_clock(about.high_s)})")
    table.add_row("", ", ".join(f"{name} {_clock(seconds)}" for name, seconds in about.seconds.items()))
    table.add_row("still to do", f"{_clock(about.left_s)}: the {about.measured:,} measured rows are kept")
    table.add_row("rows", f"{about.rows:,}")
    table.add_row("tokens", f"{about.answer_tokens:,.0f} drawn, {about.prompt_tokens:,.0f} of prompts")
    device = f", {_bytes(about.device_bytes)} on the device" if about.device_bytes else ""
    table.add_row("memory", f"{_bytes(about.memory_bytes)}{device}")
    table.add_row("disk", _bytes(about.disk_bytes))
    if price is not None:
        cost = about.summary(price)["cost"]
        table.add_row("cost", f"{cost['total']:.2f} ({cost['low']:.2f} to {cost['high']:.2f})")
    table.add_row("most of it", _advice(about))
    console.print(table)


def _advice(about: Estimate) -> str:
    if about.dominant != "sampling":
        return f"{about.dominant}, whatever the settings of sampling"
    changes = ", ".join(f"{setting} takes {factor:.0%} of it" for setting, factor in about.what_if.items())
    cut = f"; {about.cut:.0%} of the answers reach the limit" if about.cut else ""
    return f"sampling: {changes}{cut}"


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(estimate)
