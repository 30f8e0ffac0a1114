"""`adg compare`: what several methods choose from one pool, under one budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from adg_plugin.console import (
    ConfigFile,
    OutFolder,
    Overrides,
    Text,
    figure_table,
    message,
    print_json,
    print_result,
    result_console,
)
from adg_plugin.tools.compare.plans import DEFAULT_METHODS, split_methods

if TYPE_CHECKING:
    from adg_plugin.tools.compare.compare import Comparison
    from adg_plugin.tools.compare.runner import Compared

_MEASURES = (
    "bins: reached by the choice; fullest: its largest share in one bin; prompt: median tokens; answer: median words "
    "of the reference responses; alone: rows that no other method chose\n"
    "model: its seconds, shared by methods that use the same results, earlier runs included (+: partly "
    "unrecorded, ?: unrecorded, -: no model used); choosing: seconds for the selection itself"
)
_IN_NO_BIN = "\nno bin: rows of the choice without answers, which are in no bin"
_MOST_VALUES = 8  # of a kind


def compare(
    config: ConfigFile,
    methods: Annotated[
        str,
        typer.Option(
            metavar="METHOD,...",
            help="adg, random, longest, ifd, superfiltering, zip, mig, scar; with settings of its own "
            "METHOD:KEY=VALUE, such as adg:weight=0; adg:rank is short for adg:score=rank. Or what an installed "
            "package brings.",
        ),
    ] = ",".join(DEFAULT_METHODS),
    set_: Overrides = None,
    out: OutFolder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables, warnings only.")] = False,
) -> None:
    """Let several methods choose from one run folder, and compare. The last line on stdout is the path of compare.json.

    Answers are drawn if an adg method asks, likelihoods measured if ifd or superfiltering do, and only those that are
    not there. The files of an earlier selection stay as they are.
    """
    from adg_plugin.config.run_folder import load_selection
    from adg_plugin.errors import ConfigError
    from adg_plugin.store.mirror import local_run_folder

    settings, where = load_selection(config, set_, out)
    from adg_plugin.adapters.torch_team import launched_team
    from adg_plugin.tools.compare.compare import compare as compared

    with launched_team() as team:
        if team.size > 1:
            raise ConfigError(
                [f"{team.size} ranks were started: adg compare runs in one process; sample with `adg sample` in these"]
            )
        with local_run_folder(where) as folder:
            found = compared(settings, split_methods(methods), folder, show_progress=not quiet)
            path = f"{where}/{found.path.name}"
    if as_json:
        print_json(found.summary())
    else:
        if not quiet:
            print_comparison(found, result_console())
            if "://" not in where:
                print(message(f"as a page: adg report {where}"))
        print_result(path)  # a URL holds it only now
    if found.failed:
        raise typer.Exit(1)


def print_comparison(about: Comparison, console: Console) -> None:
    """Print what the choices share, a line for each method, what the columns mean, and the errors."""
    if about.facts.names:
        _print_overlaps(about, console)
        console.print()
        for kind in about.facts.coverage:
            _print_coverage(about, kind, console)
            console.print()
    _print_methods(about, console)
    for one in about.methods:
        if one.error is None and one.rejected:
            reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in one.rejected.items())
            console.print(Text(f"{one.name} could choose from {one.scored:,} rows; rejected: {reasons}"))
    for one in about.failed:
        console.print(Text(f"{one.name} failed: {one.error}"))


def _numbers(methods: int) -> list[str]:
    return [str(number) for number in range(1, methods + 1)]


def _print_overlaps(about: Comparison, console: Console) -> None:
    from adg_plugin.report.compared import format_chance

    facts = about.facts
    head = (
        f"Jaccard overlap of the choices of {about.budget:,} of {about.rows['candidates']:,} rows; by chance "
        f"{format_chance(facts.by_chance['jaccard'])}"
    )
    console.print(Text(head))  # a table's own title is folded to its width
    table = figure_table("", "method", figures=_numbers(len(facts.names)))
    width = len(str(len(facts.names)))
    for number, (name, row) in enumerate(zip(facts.names, facts.jaccard, strict=True), 1):
        table.add_row(f"{number:{width}}", Text(name), *(f"{value:.0%}" for value in row))
    console.print(table)


def _print_coverage(about: Comparison, kind: dict[str, Any], console: Console) -> None:
    """Print the shares of the values in the pool and in each choice, those beyond the most frequent together."""
    console.print(Text(f"Rows by {kind['kind']}, as shares of the pool and of each choice"))
    named = [value for value in kind["values"] if value["value"] is not None]
    lines = [(value["value"], value) for value in named[:_MOST_VALUES]]
    if rest := named[_MOST_VALUES:]:
        chosen = [sum(column) for column in zip(*(value["chosen"] for value in rest), strict=True)]
        together = {"pool": sum(value["pool"] for value in rest), "chosen": chosen}
        lines.append(("1 other" if len(rest) == 1 else f"{len(rest):,} others", together))
    lines += [("no value", value) for value in kind["values"] if value["value"] is None]
    sizes = [len(one.ids) for one in about.methods if one.error is None]
    table = figure_table(kind["kind"], figures=("pool", *_numbers(len(sizes))))
    for name, value in lines:
        shares = (f"{n / of:.0%}" for n, of in zip(value["chosen"], sizes, strict=True))
        table.add_row(Text(name), f"{value['pool'] / about.rows['candidates']:.0%}", *shares)
    console.print(table)


def _print_methods(about: Comparison, console: Console) -> None:
    bins = about.facts.bins
    reached = f"bins of {bins['total']:,}" if bins else "bins"
    lost = ["no bin"] if bins and any(bins["without_a_bin"]) else []
    heads = ("rows", reached, "fullest", *lost, "prompt", "answer", "alone", "model", "choosing")
    table = figure_table("method", figures=heads)
    place = {name: i for i, name in enumerate(about.facts.names)}
    for one in about.methods:
        cells = ["failed"] if one.error is not None else _cells(about, one, place[one.name], no_bin=bool(lost))
        table.add_row(Text(one.name), *cells)
    medians = _medians(about.facts.lengths_of_pool)
    table.add_row("the pool", f"{about.rows['candidates']:,}", "", "", *([""] * len(lost)), *medians)
    console.print(table)
    none, everyone = about.facts.chosen_by["none"], about.facts.chosen_by["all"]
    console.print(Text(f"{everyone:,} rows are chosen by all methods, {none:,} by none"))
    console.print(Text(_MEASURES + (_IN_NO_BIN if lost else "")))


def _cells(about: Comparison, one: Compared, at: int, *, no_bin: bool) -> list[str]:
    facts, bins = about.facts, about.facts.bins
    in_bins = [f"{bins['reached'][at]:,}", f"{bins['largest_share'][at]:.0%}"] if bins else ["-", "-"]
    if bins and no_bin:
        in_bins.append(f"{bins['without_a_bin'][at]:,}")
    alone, model, choosing = f"{facts.alone[at]:,}", _model_seconds(about, one), f"{one.seconds:.1f}"
    return [f"{len(one.ids):,}", *in_bins, *_medians(facts.lengths[at]), alone, model, choosing]


def _model_seconds(about: Comparison, one: Compared) -> str:
    costs = about.costs_of(one)
    if not costs:
        return "-"
    if not all(cost.rows for cost in costs):
        return "?"
    whole = all(cost.is_whole(about.rows["candidates"]) for cost in costs)
    return f"{sum(cost.seconds for cost in costs):.1f}" + ("" if whole else "+")


def _medians(lengths: dict[str, dict[str, float]]) -> list[str]:
    return [f"{lengths[name]['p50']:.0f}" for name in ("prompt_tokens", "reference_words")]
