"""`adg sweep`: what other settings would have chosen, from the stored answers of a finished selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from adg_plugin.config.values import typed_value
from adg_plugin.console import AsJson, RunDir, Text, figure_table, print_json, result_console
from adg_plugin.errors import ConfigError

if TYPE_CHECKING:
    from adg_plugin.tools.sweep.choices import Similarity
    from adg_plugin.tools.sweep.sweep import Line, Sweep

_MEASURES = (
    "r: rank correlation of the scores with the run's",
    "shared, Jaccard: of the chosen rows with the run's; chance: what bins and budgets alone would share",
    "r(s,D), r(s,I): rank correlation of the score with its own dispersion and anisotropy",
    "D, I, tokens: means of the chosen rows, D and I as the run measured them, tokens per answer",
)


def sweep(
    run_dir: RunDir,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="Values to compare with the run's: of weight, score, num_samples, bins, budget, subset, and, with the "
            "model, layers and pooling. Default: the first four and subset.",
        ),
    ] = None,
    product: Annotated[bool, typer.Option("--product", help="Vary the keys together, not one at a time.")] = False,
    rows: Annotated[
        int | None,
        typer.Option(metavar="N", min=10, help="For layers and pooling: embed N random rows and compare those."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what other settings would have chosen, from the stored answers; nothing is sampled, RUN_DIR stays as it is.

    For layers and pooling, the run's model embeds the stored answers again, each time anew.
    """
    asked = parse_vary(vary) if vary else None
    from adg_plugin.tools.sweep.sweep import sweep as found

    about = found(str(run_dir), asked, product=product, rows=rows)
    if as_json:
        print_json(about.summary())
        return
    print_sweep(about, result_console())


def parse_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each key of `KEY=VALUE,VALUE` texts; `none` is no value.

    Raises:
        ConfigError: a text is not of that form.
    """
    found: dict[str, list[Any]] = {}
    problems = []
    for text in texts:
        key, equals, values = text.partition("=")
        if not (equals and key.strip() and all(value.strip() for value in values.split(","))):
            problems.append(f"--vary is {text!r}: write KEY=VALUE,VALUE, such as weight=0,0.4,1")
            continue
        found.setdefault(key.strip(), []).extend(typed_value(value.strip()) for value in values.split(","))
    if problems:
        raise ConfigError(problems)
    return found


def print_sweep(about: Sweep, console: Console) -> None:
    """Print a line for each variant below that of the run, then what the columns and figures mean."""
    _print_lines(f"{about.rows:,} rows, {about.run.chosen:,} chosen", about.run, about.lines, console)
    if about.part is not None:
        title = f"embedded again: {about.part.rows:,} rows, {about.part.chosen:,} chosen"
        _print_lines(title, about.part, about.part_lines, console)
    console.print(Text("\n".join([*_MEASURES, *about.notes])))


def _print_lines(title: str, run: Similarity, lines: Sequence[Line], console: Console) -> None:
    figures = ("r", "shared", "Jaccard", "chance", "r(s,D)", "r(s,I)", "D", "I", "tokens")
    table = figure_table("setting", figures=figures, title=title)
    table.add_row("the run", *_numbers(run))
    for line in lines:
        name = f"{line.name} = run" if line.own else line.name
        if line.found.chosen != run.chosen:
            name += f": {line.found.chosen:,} rows"
        table.add_row(Text(name), *_numbers(line.found))
    console.print(table)


def _numbers(of: Similarity) -> tuple[str, ...]:
    return (
        f"{of.rank_correlation:.2f}",
        f"{of.shared:.0%}",
        f"{of.jaccard:.0%}",
        f"{of.shared_by_chance:.0%}",
        f"{of.correlation_dispersion:.2f}",
        f"{of.correlation_anisotropy:.2f}",
        f"{of.mean_dispersion:.3f}",
        f"{of.mean_anisotropy:.3f}",
        f"{of.mean_answer_tokens:.0f}",
    )
