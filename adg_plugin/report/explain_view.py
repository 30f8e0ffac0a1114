"""An explanation on a terminal, at any width."""

from __future__ import annotations

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from adg_plugin.report.explain import Explanation
from adg_plugin.report.explain_method import MethodExplanation
from adg_plugin.selectors.columns import printable, shown

_LONGEST = 1200  # characters of a text


def print_explanation(about: Explanation | MethodExplanation, console: Console) -> None:
    """Print why a row was chosen or left out. Texts of the data set are never read as markup."""
    verdict = Text("chosen", "bold green") if about.chosen else Text("not chosen", "bold red")
    console.print(Text.assemble(("row ", "bold"), about.id, f" of {about.where}: ", verdict, f", {about.reason}"))
    for change in about.changes:
        console.print(Text(f"  {change}"))
    console.print(Panel(Text(_cut(about.instruction)), title="instruction", title_align="left"))
    if about.reference:
        console.print(Panel(Text(_cut(about.reference)), title="the reference response", title_align="left"))
    if isinstance(about, MethodExplanation):
        console.print(_parts(about))
        return
    for number, answer in enumerate(about.answers, 1):
        ended = "" if answer.finish_reason == "eos" else ", cut at the limit"
        title = f"answer {number}: {len(answer.token_ids)} tokens{ended}"
        console.print(Panel(Text(_cut(answer.text)), title=title, title_align="left"))
    console.print(Group(Text("similarity of the answers", "bold"), _similarity(about), Text(""), _numbers(about)))


def _similarity(about: Explanation) -> Table:
    count = len(about.answers)
    table = Table("", *(str(n) for n in range(1, count + 1)), box=None, pad_edge=False)
    for number, row in enumerate(about.similarity, 1):
        table.add_row(str(number), *(f"{value:.3f}" for value in row))
    return table


def _numbers(about: Explanation) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    total = sum(about.eigenvalues)
    shares = (
        ", ".join(f"{value / total:.0%}" for value in about.eigenvalues[:-1]) if total > 0 else "all answers are equal"
    )
    table.add_row("spread in each direction", shares)
    table.add_row("dispersion D", f"{about.dispersion:.4f}")
    table.add_row("anisotropy I", f"{about.anisotropy:.4f}")
    weight = f", {1 - about.weight:.2g} D + {about.weight:.2g} I" if about.form == "raw" else ""
    table.add_row("score", f"{about.score:.4f} (score: {about.form}{weight})")
    table.add_row("bin", f"{about.bin}, of {about.bin_rows} rows; {about.quota} to choose")
    others = ", ".join(f"{form} {rank}" for form, rank in about.ranks.items())
    table.add_row("rank in its bin", f"{about.rank}; by other scores: {others}")
    return table


def _parts(about: MethodExplanation) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("method", about.chooser.name, "")
    for name, value in about.parts.items():
        table.add_row(name, shown(value), about.chooser.part_meanings.get(name, ""))
    table.add_row("score", shown(about.score), about.chooser.score_meaning)
    if about.rank is None:
        why = "never came to the row" if about.chooser.stepwise else "gave it no score"
        table.add_row("rank", "none", f"{about.chooser.name} {why}")
    else:
        table.add_row("rank", f"{about.rank:,} of {about.rows:,}", "1 is the best")
    return table


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
