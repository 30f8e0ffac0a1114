"""Why one row was chosen or left out, from what the run folder holds, and the same on a terminal of any width."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table

from adg_plugin.config.groups import ScoreForm
from adg_plugin.console import Text
from adg_plugin.errors import DataError, visible
from adg_plugin.report.rows import shortened
from adg_plugin.scoring.geometry import centred_spectrum
from adg_plugin.selectors.adg import ranks_by_form
from adg_plugin.selectors.base import Selector
from adg_plugin.selectors.columns import Number, part_names, plain, shown
from adg_plugin.selectors.registry import selector
from adg_plugin.store import RunFolder, RunReader
from adg_plugin.store.reader import finished, lost_answers
from adg_plugin.store.records import Answer

_LONGEST = 1200  # characters of a text


@dataclass(frozen=True, slots=True)
class _Row:
    """A row and what became of it."""

    id: str
    where: str  # file and line of the row
    prompt: str  # as it was rendered
    instruction: str  # the row's own words
    reference: str  # its reference response
    chosen: bool
    reason: str
    changes: tuple[str, ...]  # sentences: what would have changed the choice


@dataclass(frozen=True, slots=True)
class MethodExplanation(_Row):
    """Everything that decided over one row where another method than ADG chose."""

    chooser: Selector
    parts: dict[str, Number]  # by column, what the score was made of; None where the method never came to the row
    score: Number  # likewise
    rank: int | None  # among the `rows` that could be chosen, 1 is the best; likewise
    rows: int


@dataclass(frozen=True, slots=True)
class Explanation(_Row):
    """Everything that decided over one row where ADG chose."""

    answers: tuple[Answer, ...]  # K drawn answers
    similarity: npt.NDArray[np.float32]  # (K, K) cosines of their vectors
    eigenvalues: npt.NDArray[np.float64]  # (K,) of the centred Gram matrix, largest first; sum: K * dispersion
    dispersion: float
    anisotropy: float
    score: float
    form: ScoreForm
    weight: float
    bin: int
    bin_rows: int  # which share `quota` places
    rank: int  # within its bin, 1 is the highest score
    quota: int
    ranks: dict[ScoreForm, int]  # under each other form of the score, with the settings' weight


def explain(run_dir: str, id: str) -> Explanation | MethodExplanation:
    """Return why the row `id` was chosen or left out, by ADG or by another method.

    Raises:
        StoreError: not a run folder, one without a result, or the row's answers were lost since.
        DataError: the row was rejected (the text says why), or there is no such row.
    """
    run = RunFolder.read(run_dir)
    config = finished(run)
    table = run.scores()
    ids = table["id"].to_pylist()
    if id not in ids:
        raise _unknown(run, id, ids)
    at = ids.index(id)
    chooser = selector(config.method)
    row = table.slice(at, 1).to_pylist()[0]
    (staged,) = run.staged_rows([id])
    about: dict[str, Any] = {
        "id": id,
        "where": staged.where,
        "prompt": staged.text,
        "instruction": staged.prompt.instruction,
        "reference": staged.reference,
        "chosen": row["chosen"],
        "reason": row["reason"],
        "changes": tuple(chooser.changes(table, at, config)),
    }
    if not chooser.by_divergence:
        parts = {name: plain(row[name]) for name in part_names(table)}
        score = plain(row["score"])
        return MethodExplanation(**about, chooser=chooser, parts=parts, score=score, rank=row["rank"], rows=len(table))
    result = run.result(staged.prompt)
    if result is None or result.gram is None:
        raise lost_answers(run)
    return Explanation(
        **about,
        answers=result.answers,
        similarity=result.gram,
        eigenvalues=centred_spectrum(result.gram[None])[0],
        dispersion=row["dispersion"],
        anisotropy=row["anisotropy"],
        score=row["score"],
        form=config.score,
        weight=config.weight,
        bin=row["bin"],
        bin_rows=int(np.sum(table["bin"].to_numpy() == row["bin"])),
        rank=row["rank_in_bin"],
        quota=row["bin_quota"],
        ranks=ranks_by_form(table, at, config),
    )


def _unknown(run: RunReader, id: str, ids: list[str]) -> DataError:
    for rejection in run.rejections():
        if rejection.id == id:
            detail = f" ({rejection.detail})" if rejection.detail else ""
            return DataError(f"row {id!r} of {rejection.where or 'the pool'} was rejected: {rejection.reason}{detail}")
    close = difflib.get_close_matches(id, ids, n=3) if len(ids) <= 200_000 else []
    hint = f"did you mean {', '.join(close)}?" if close else "ids are in scores.parquet and rejected.jsonl"
    return DataError(f"there is no row {id!r} in {run.path}: {hint}")


def print_explanation(about: Explanation | MethodExplanation, console: Console) -> None:
    """Print why a row was chosen or left out. Texts of the data set are never read as markup."""
    verdict = Text("chosen", "bold green") if about.chosen else Text("not chosen", "bold red")
    console.print(Text.assemble(("row ", "bold"), about.id, f" of {about.where}: ", verdict, f", {about.reason}"))
    for change in about.changes:
        console.print(Text(f"  {change}"))
    console.print(_panel("instruction", about.instruction))
    if about.reference:
        console.print(_panel("the reference response", about.reference))
    if isinstance(about, MethodExplanation):
        console.print(_parts(about))
        return
    for number, answer in enumerate(about.answers, 1):
        ended = "" if answer.finish_reason == "eos" else ", cut at the limit"
        title = f"answer {number}: {len(answer.token_ids)} tokens{ended}"
        console.print(_panel(title, answer.text))
    console.print(Group(Text("similarity of the answers", "bold"), _similarity(about), Text(""), _numbers(about)))


def _panel(title: str, text: str) -> Panel:
    return Panel(Text(shortened(visible(text), _LONGEST)), title=Text(title), title_align="left")


def _similarity(about: Explanation) -> Table:
    count = len(about.answers)
    table = Table("", *(str(n) for n in range(1, count + 1)), box=None, pad_edge=False)
    for number, row in enumerate(about.similarity, 1):
        table.add_row(str(number), *(f"{value:.3f}" for value in row))
    return table


def _numbers(about: Explanation) -> Table:
    total = sum(about.eigenvalues)
    shares = (
        ", ".join(f"{value / total:.0%}" for value in about.eigenvalues[:-1]) if total > 0 else "all answers are equal"
    )
    weight = f", {1 - about.weight:.2g} D + {about.weight:.2g} I" if about.form == "raw" else ""
    others = ", ".join(f"{form} {rank}" for form, rank in about.ranks.items())
    return _lines(
        ("spread in each direction", shares),
        ("dispersion D", f"{about.dispersion:.4f}"),
        ("anisotropy I", f"{about.anisotropy:.4f}"),
        ("score", f"{about.score:.4f} (score: {about.form}{weight})"),
        ("bin", f"{about.bin}, of {about.bin_rows} rows; {about.quota} to choose"),
        ("rank in its bin", f"{about.rank}; by other scores: {others}"),
    )


def _parts(about: MethodExplanation) -> Table:
    chooser = about.chooser
    if about.rank is None:
        rank = ("none", f"{chooser.name} {'never came to the row' if chooser.stepwise else 'gave it no score'}")
    else:
        rank = (f"{about.rank:,} of {about.rows:,}", "1 is the best")
    return _lines(
        ("method", chooser.name, ""),
        *((name, shown(value), chooser.part_meanings.get(name, "")) for name, value in about.parts.items()),
        ("score", shown(about.score), chooser.score_meaning),
        ("rank", *rank),
    )


def _lines(*lines: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for line in lines:
        table.add_row(*line)
    return table
