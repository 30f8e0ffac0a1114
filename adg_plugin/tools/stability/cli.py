"""`adg stability`: how much of a finished selection another run with other draws would share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adg_plugin.console import RunDir, result_console

if TYPE_CHECKING:
    from adg_plugin.scoring.stability import Stability
    from adg_plugin.tools.stability.resample import Resampled


def stability(
    run_dir: RunDir,
    resample: Annotated[
        int | None,
        typer.Option(metavar="N", min=10, help="Draw fresh answers for N random rows, with another seed, and compare."),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Doubtful rows to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Say how much of the choice is sampling noise, within the same bins, from the stored answers alone.

    Another `seed` also moves the bins, so the choices of two seeds share less than is shown here.
    """
    from adg_plugin.scoring.stability import stability as measured

    about = measured(str(run_dir))
    fresh = None
    if resample is not None:
        from adg_plugin.tools.stability.resample import resample_rows

        fresh = resample_rows(str(run_dir), resample, about)
    if as_json:
        print(json.dumps(about.summary() | ({"resampled": fresh.summary()} if fresh else {}), indent=2))
        return
    console = result_console()
    print_stability(about, console, rows)
    if fresh is not None:
        _print_resampled(fresh, console)


def print_stability(about: Stability, console: Console, rows: int = 10) -> None:
    """Print what to expect of another run, what helps, and the `rows` most doubtful rows."""
    mean, low, high = about.overlap
    doubtful = about.doubtful()
    sentences = [
        f"another run with other draws would share about {mean:.0%} ({low:.0%} to {high:.0%}) of this choice of "
        f"{int(about.chosen.sum()):,} rows within the same bins, which another seed also moves; by chance "
        f"{about.chance:.0%}",
    ]
    if not about.tied:
        sentences.append(
            f"{about.reliability:.0%} of how scores differ within their bins is the rows, the rest is sampling noise; "
            f"the scores of two runs would correlate at about {about.correlation:.2f}"
        )
    if about.errors.any():
        sentences.append(
            f"a score has a standard error of about {about.summary()['standard_error']['p50']:.3g}; {len(doubtful):,} "
            f"of {len(about.ids):,} rows are near the cut: one standard error from changing places with another row of "
            "their bin"
        )
    if about.overlap_with and mean < 1:
        more = ", ".join(f"{value:.0%} with num_samples: {k}" for k, value in about.overlap_with.items())
        sentences.append(f"two runs of more answers would share about {more}; now it is {about.num_samples}")
    for sentence in (*sentences, *about.notes):
        console.print(Text(sentence))
    if doubtful and rows:
        table = Table(title="the most doubtful rows", title_justify="left", box=None, pad_edge=False)
        for name in ("id", "score", "error", "now", "chosen by another run"):
            table.add_column(name, justify="left" if name in ("id", "now") else "right", overflow="fold")
        for row in doubtful[:rows]:
            now = "chosen" if about.chosen[row] else "left out"
            numbers = (f"{about.scores[row]:.4f}", f"{about.errors[row]:.4f}", now, f"{about.again[row]:.0%}")
            table.add_row(Text(str(about.ids[row])), *numbers)
        console.print(table)


def _print_resampled(fresh: Resampled, console: Console) -> None:
    (correlation, of_correlation), (error, of_error) = fresh.correlation, fresh.error
    left = f"; {fresh.left_out} more got fewer answers than before" if fresh.left_out else ""
    verdict = "as predicted" if fresh.agrees else "not as predicted: trust the found one, not the figures above"
    for sentence in (
        f"fresh answers to {len(fresh.ids):,} random rows (seed {fresh.seed}){left}:",
        f"  old and new scores correlate at {correlation:.2f} ± {of_correlation:.2f}; predicted "
        f"{fresh.predicted_correlation:.2f}",
        f"  standard error of a score {error:.3g} ± {of_error:.2g}; predicted {fresh.predicted_error:.3g}: {verdict}",
    ):
        console.print(Text(sentence))


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(stability)
