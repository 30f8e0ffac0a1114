"""Why one row was chosen or left out, from what the run folder holds."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adg_plugin.config.schema import ScoreForm
from adg_plugin.errors import DataError
from adg_plugin.report.explain_method import MethodExplanation, explain_by_method
from adg_plugin.scoring.geometry import centred_spectrum
from adg_plugin.selectors.adg import ranks_by_form
from adg_plugin.selectors.registry import selector
from adg_plugin.store import RunFolder, RunReader
from adg_plugin.store.finished import finished, lost_answers
from adg_plugin.store.records import Answer


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
    chooser = selector(config.method)
    if not chooser.by_divergence:
        return explain_by_method(run, config, chooser, table, at)
    row = table.slice(at, 1).to_pylist()[0]
    (staged,) = run.staged_rows([id])
    result = run.result(staged.prompt)
    if result is None or result.gram is None:
        raise lost_answers(run)
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
        bin_rows=int(np.sum(table["bin"].to_numpy() == row["bin"])),
        rank=row["rank_in_bin"],
        quota=row["bin_quota"],
        chosen=row["chosen"],
        reason=row["reason"],
        ranks=ranks_by_form(table, at, config),
        changes=tuple(chooser.changes(table, at, config)),
    )


def _unknown(run: RunReader, id: str, ids: list[str]) -> DataError:
    for rejection in run.rejections():
        if rejection.id == id:
            detail = f" ({rejection.detail})" if rejection.detail else ""
            return DataError(f"row {id!r} of {rejection.where or 'the pool'} was rejected: {rejection.reason}{detail}")
    close = difflib.get_close_matches(id, ids, n=3) if len(ids) <= 200_000 else []
    hint = f"did you mean {', '.join(close)}?" if close else "ids are in scores.parquet and rejected.jsonl"
    return DataError(f"there is no row {id!r} in {run.path}: {hint}")
