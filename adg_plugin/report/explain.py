"""Why one row was chosen or left out, from what the run folder holds."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adg_plugin.config.schema import ADGConfig, ScoreForm
from adg_plugin.errors import DataError
from adg_plugin.report.explain_method import MethodExplanation, explain_by_method
from adg_plugin.scoring.geometry import centred_spectrum, combine
from adg_plugin.scoring.quota import IN_QUOTA, allocate
from adg_plugin.store import RunFolder, RunReader
from adg_plugin.store.finished import finished, lost_answers
from adg_plugin.store.records import Answer

FORMS: tuple[ScoreForm, ...] = ("raw", "rank", "zscore", "residual")


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that decided over one row where ADG chose.

    Attributes:
        prompt: the rendered prompt; `instruction` are the row's own words, `reference` its reference response.
        where: file and line of the row.
        answers: K drawn answers.
        similarity: (K, K) cosines of their vectors.
        eigenvalues: (K,) of the centred Gram matrix, largest first; they sum to K * dispersion.
        rank: within its bin, 1 is the highest score; `bin_rows` rows share `quota` places.
        ranks: the rank under each other form of the score, with the settings' weight.
        changes: sentences: what would have changed the choice.
    """

    id: str
    where: str
    prompt: str
    instruction: str
    reference: str
    answers: tuple[Answer, ...]
    similarity: npt.NDArray[np.float32]
    eigenvalues: npt.NDArray[np.float64]
    dispersion: float
    anisotropy: float
    score: float
    form: ScoreForm
    weight: float
    bin: int
    bin_rows: int
    rank: int
    quota: int
    chosen: bool
    reason: str
    ranks: dict[ScoreForm, int]
    changes: tuple[str, ...]


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
    if config.method != "adg":
        return explain_by_method(run, config, table, at)
    row = table.slice(at, 1).to_pylist()[0]
    (staged,) = run.staged_rows([id])
    result = next(run.results([id]), None)
    if result is None or result.gram is None:
        raise lost_answers(run)
    dispersion, anisotropy, scores = (table[name].to_numpy() for name in ("dispersion", "anisotropy", "score"))
    bins = table["bin"].to_numpy()
    mates = np.flatnonzero(bins == row["bin"])
    ranks = {
        form: int(np.sum(_better(combine(dispersion, anisotropy, form, config.weight), at, mates, ids)) + 1)
        for form in FORMS
        if form != config.score
    }
    return Explanation(
        id=id,
        where=staged.where,
        prompt=staged.text,
        instruction=staged.prompt.instruction,
        reference=staged.reference,
        answers=result.answers,
        similarity=result.gram,
        eigenvalues=centred_spectrum(result.gram[None])[0],
        dispersion=row["dispersion"],
        anisotropy=row["anisotropy"],
        score=row["score"],
        form=config.score,
        weight=config.weight,
        bin=row["bin"],
        bin_rows=len(mates),
        rank=row["rank_in_bin"],
        quota=row["bin_quota"],
        chosen=row["chosen"],
        reason=row["reason"],
        ranks=ranks,
        changes=tuple(_changes(row, config, scores[mates], table["rank_in_bin"].to_numpy()[mates], bins, ranks)),
    )


def _better(
    scores: npt.NDArray[np.float64], at: int, mates: npt.NDArray[np.intp], ids: list[str]
) -> npt.NDArray[np.bool_]:
    """Return which rows of the bin come before row `at`: a higher score, or the same and an earlier id."""
    earlier = np.array([ids[mate] < ids[at] for mate in mates])
    better: npt.NDArray[np.bool_] = (scores[mates] > scores[at]) | ((scores[mates] == scores[at]) & earlier)
    return better


def _changes(
    row: dict[str, Any],
    config: ADGConfig,
    scores: npt.NDArray[np.float64],
    ranks: npt.NDArray[np.int32],
    bins: npt.NDArray[np.int32],
    other: dict[ScoreForm, int],
) -> list[str]:
    """Return what would have changed the choice of a row; `scores` and `ranks` are those of its bin."""
    rank, quota, score, chosen = (row[name] for name in ("rank_in_bin", "bin_quota", "score", "chosen"))
    if config.subset != "top":
        return [f"subset is {config.subset}: rows are taken from there, not by the highest score"]
    found = []
    if row["reason"] == IN_QUOTA and quota < len(scores):
        first_left = float(scores[ranks == quota + 1][0])
        found.append(f"a score below {first_left:.4f} ({first_left - score:+.4f}) would have left it out")
    elif not chosen and quota:
        last_in = float(scores[ranks == quota][0])
        found.append(f"a score above {last_in:.4f} ({last_in - score:+.4f}) would have chosen it")
    if not chosen:
        sizes = np.bincount(bins)
        enough = _enough(sizes, row["bin"], rank)
        found.append(f"its bin gives {quota} of {len(scores)} rows; a budget of about {enough:,} would have reached it")
    for form, place in other.items():
        if (place <= quota) != chosen:
            found.append(
                f"score: {form} would have {'left it out' if chosen else 'chosen it'} (rank {place} in its bin)"
            )
    return found


def _enough(sizes: npt.NDArray[np.intp], bin_: int, rank: int) -> int:
    """Return a budget under which the bin's quota reaches `rank`, the smallest but for largest-remainder paradoxes."""
    low, high = 1, int(sizes.sum())
    while low < high:
        middle = (low + high) // 2
        if allocate(sizes, middle)[bin_] >= rank:
            high = middle
        else:
            low = middle + 1
    return low


def _unknown(run: RunReader, id: str, ids: list[str]) -> DataError:
    for rejection in run.rejections():
        if rejection.id == id:
            detail = f" ({rejection.detail})" if rejection.detail else ""
            return DataError(f"row {id!r} of {rejection.where or 'the pool'} was rejected: {rejection.reason}{detail}")
    close = difflib.get_close_matches(id, ids, n=3) if len(ids) <= 200_000 else []
    hint = f"did you mean {', '.join(close)}?" if close else "ids are in scores.parquet and rejected.jsonl"
    return DataError(f"there is no row {id!r} in {run.path}: {hint}")
