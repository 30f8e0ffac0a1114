"""What a finished run folder has to say, gathered once for the page, the figures and the JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.filters.near_duplicates import NearDuplicates, text_shingles
from adg_plugin.data.rows import Reason
from adg_plugin.errors import MissingExtraError
from adg_plugin.report import rows
from adg_plugin.report.beside import read_beside
from adg_plugin.report.by_method import method_figures
from adg_plugin.report.compared import read_compared
from adg_plugin.report.drawn import all_figures
from adg_plugin.report.facets import add_languages, read_facets
from adg_plugin.report.figures import Figure
from adg_plugin.report.side_files import COMPARE
from adg_plugin.scoring.jackknife import calibrated
from adg_plugin.scoring.stability import Stability, stability_of
from adg_plugin.selectors.registry import selector
from adg_plugin.store import Geometry, Rejection, RunFolder, RunReader
from adg_plugin.store.finished import check_answers, finished
from adg_plugin.store.stats import seconds_of

_CHARACTERS = 160  # of an instruction in the list
_REJECTED_EXAMPLES = 50  # of each reason
_NEAR_THE_CUT = 100  # ids in the JSON; the table has all
_MOST_ROWS_OF_STABILITY = 200_000
_NEAR, _NEAR_SHARE = 0.8, 0.01  # similarity; share of the chosen rows that is worth a warning
_MOST_COMPARED = 20_000
_CUT_ANSWERS = 0.3  # share of answers cut at the limit that is worth a warning
_HIGH = {True: "high", False: "low"}


@dataclass(frozen=True, slots=True)
class Gathered:
    """The contents of a report.

    Attributes:
        about: figures and facts, as JSON; where nothing is selected, `summary` has no method, and much is missing.
        figures: with their data.
        table: the listed rows, column by column.
        texts: of some rows in full, with their answers if there are any, by id.
        rejected: examples of rejected rows.
    """

    about: dict[str, Any]
    figures: tuple[Figure, ...]
    table: dict[str, Any]
    texts: dict[str, dict[str, Any]]
    rejected: list[dict[str, str]]


def gather(run_dir: Path, *, gpu_hour_price: float | None = None) -> Gathered:
    """Return what the report of a run folder shows.

    Args:
        run_dir: of a finished selection, or of a comparison without one.
        gpu_hour_price: of one device, for the cost of the sampling.

    Raises:
        StoreError: not a run folder, without a result, or damaged since.
    """
    run = RunFolder.read(run_dir)
    manifest = run.manifest()
    if manifest is None and read_compared(run, None) is not None:
        return _without_selection(run)
    config = finished(run)
    assert manifest is not None
    table = run.scores()
    chooser = selector(config.method)
    drawn = _Drawn.of(run, table, config) if chooser.by_divergence else None
    rng = np.random.default_rng(config.seed)
    ids, chosen = table["id"].to_pylist(), table["chosen"].to_numpy()
    facets = read_facets(run, ids, [spec.path for spec in config.datasets], _CHARACTERS)
    add_languages(facets, chosen, rng)
    listed = rows.listed_rows(table, rows.MOST_ROWS, rng)
    at_random = np.sort(rng.permutation(len(table))[: rows.MOST_ANSWERED // 2])
    listed = np.union1d(listed, at_random)
    answered = rows.answered_rows(table, listed, at_random, rows.MOST_ANSWERED)
    texts = rows.texts(run, [ids[row] for row in answered])
    # Answers of an earlier choice by ADG may be there, but this one has nothing to do with them.
    cut_share = _cut_share([texts[ids[row]] for row in at_random if ids[row] in texts]) if drawn else None
    steady = drawn.steady if drawn else None
    repeated = _near_duplicates(run, [ids[row] for row in np.flatnonzero(chosen)])
    beside = read_beside(run, manifest)
    warnings = [*manifest["warnings"], *_warnings(config, cut_share or 0.0, steady, repeated), *beside.warnings]
    about = {
        "summary": _summary(run, manifest, config, gpu_hour_price),
        "score": manifest["score"],
        "quadrants": drawn.quadrants if drawn else None,
        "composition": {name: facet.counted(chosen) for name, facet in facets.kinds.items()},
        "sampled": [name for name, facet in facets.kinds.items() if facet.sample is not None],
        "rejected": manifest["rows"]["rejected"],
        "answers_cut_at_the_limit": cut_share,
        "near_duplicates": repeated,
        "stability": None if steady is None else _short_summary(steady),
        "comparison": beside.comparison,
        "evaluations": beside.evaluations,
        "warnings": [*warnings, *run.damage],
    }
    columns = rows.columns(table, facets, listed)
    if steady is not None:
        columns["again"] = [round(float(value), 2) for value in steady.again[listed]]
    made_of = about["composition"], about["sampled"]
    shown = (
        all_figures(table, drawn.vectors, facets, manifest, drawn.medians, *made_of, rng)
        if drawn
        else method_figures(table, facets, chooser, *made_of)
    )
    return Gathered(about, (*shown, *beside.figures), columns, texts, _rejected(run.rejections()))


def _without_selection(run: RunReader) -> Gathered:
    """Return what a comparison has to say in a run folder where nothing is selected yet."""
    beside = read_beside(run, None)
    compared = beside.comparison
    assert compared is not None
    config = ADGConfig.of_run(compared["config"], source=str(run.path / COMPARE))
    alone = f"{run.path} holds a comparison and no finished selection: adg select makes one, and its page has both"
    rejected = Counter(rejection.reason for rejection in run.staged_rejections())
    summary = {
        "run": run.path.resolve().name,
        "created": compared["created"],
        "method": None,
        "model": config.model or "in memory",
        "rows": {**compared["rows"], "pool": compared["rows"]["pool"] + rejected[Reason.DUPLICATE]},
        "settings": config.model_dump(mode="json", exclude_defaults=True),
        "recipe": compared["recipe"],
        "versions": compared["versions"],
    }
    about = {
        "summary": summary,
        "rejected": dict(rejected.most_common()),
        "comparison": compared,
        "evaluations": beside.evaluations,
        "warnings": [alone, *beside.warnings, *run.damage],
    }
    table: dict[str, Any] = {"id": [], "instruction": []}
    return Gathered(about, beside.figures, table, {}, _rejected(run.staged_rejections()))


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What only a choice by ADG has to say, from the answers that were drawn for it.

    Attributes:
        vectors: (N, H) of the prompts.
        quadrants: rows and chosen rows of each quadrant around the `medians` of dispersion and anisotropy.
        steady: None where the pool is too large for it.
    """

    vectors: npt.NDArray[np.float16]
    quadrants: list[dict[str, Any]]
    medians: tuple[float, float]
    steady: Stability | None

    @classmethod
    def of(cls, run: RunReader, table: pa.Table, config: ADGConfig) -> _Drawn:
        geometry = run.geometry()
        check_answers(run, geometry)
        scored = pc.is_in(pa.array(geometry.ids, pa.string()), value_set=table["id"]).to_numpy(zero_copy_only=False)
        geometry = geometry.without(~scored, ())  # rows that a filter on the answers has rejected
        return cls(geometry.prompt_vectors, *_quadrants(table), _stability(table, geometry, config))


def _summary(run: RunReader, manifest: dict[str, Any], config: ADGConfig, price: float | None) -> dict[str, Any]:
    sampling, counts = manifest["sampling"], manifest["rows"]
    rating = sampling.get("rating", {})  # of mig, beside its tagger
    seconds = seconds_of(sampling)
    found: dict[str, Any] = {
        "run": run.path.resolve().name,
        "created": manifest["created"],
        "method": config.method,
        "model": config.model or "in memory",
        "rows": counts,
        "settings": config.model_dump(mode="json", exclude_defaults=True),
        "recipe": manifest["recipe"],
        "versions": manifest["versions"],
        "answer_tokens": manifest["answer_tokens"],
        # Of the last run only: one that was interrupted left no record of its time. Of another method: of measuring.
        "sampled_rows": max(sampling.get("rows", 0), rating.get("rows", 0)),
        "sampling_seconds": seconds,
        "sampled_tokens": sampling.get("tokens", 0) + rating.get("tokens", 0),
        "devices": config.devices(sampling.get("ranks", 1)),
        "seconds": manifest["seconds"],
    }
    if price is not None:
        known = found["devices"]
        found["cost"] = None if known is None else seconds / 3600 * price * known
    return found


def _quadrants(table: pa.Table) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """Return rows and chosen rows of each quadrant around the medians, and these."""
    dispersion, anisotropy = table["dispersion"].to_numpy(), table["anisotropy"].to_numpy()
    chosen = table["chosen"].to_numpy()
    medians = float(np.median(dispersion)), float(np.median(anisotropy))
    found = []
    for far in (True, False):
        for wide in (True, False):
            inside = ((dispersion > medians[0]) == far) & ((anisotropy > medians[1]) == wide)
            name = {"dispersion": _HIGH[far], "anisotropy": _HIGH[wide]}
            found.append({**name, "rows": int(inside.sum()), "chosen": int((inside & chosen).sum())})
    return found, medians


def _cut_share(texts: Sequence[dict[str, Any]]) -> float:
    cut = [answer[2] for about in texts for answer in about["answers"]]
    return float(np.mean(cut)) if cut else 0.0


def _stability(table: pa.Table, geometry: Geometry, config: ADGConfig) -> Stability | None:
    """Return how stable the choice is; None where the pool is so large that this would take minutes."""
    if len(table) > _MOST_ROWS_OF_STABILITY:
        return None
    bins, chosen = table["bin"].to_numpy(), table["chosen"].to_numpy()
    return stability_of(calibrated(geometry.grams), geometry.ids, bins, chosen, config)


def _short_summary(steady: Stability) -> dict[str, Any]:
    found = steady.summary()
    return {**found, "near_the_cut": found["near_the_cut"][:_NEAR_THE_CUT]}


def _near_duplicates(run: RunReader, chosen: Sequence[str]) -> dict[str, int] | None:
    """Return how many of the chosen rows nearly repeat an earlier one; None where the package for it is missing."""
    try:
        index = NearDuplicates(_NEAR)
    except MissingExtraError:
        return None
    looked_at = chosen[:_MOST_COMPARED]
    rows_of = run.staged_rows(set(looked_at))
    near = sum(index.near(r.prompt.id, text_shingles(r.prompt.instruction)) is not None for r in rows_of)
    return {"rows": near, "of": len(looked_at)}


def _warnings(
    config: ADGConfig, cut_share: float, steady: Stability | None, repeated: dict[str, int] | None
) -> list[str]:
    found = []
    if repeated and repeated["rows"] > _NEAR_SHARE * repeated["of"]:
        found.append(
            f"{repeated['rows']} of {repeated['of']} chosen rows nearly repeat another one (similarity {_NEAR}): "
            f"filters.near_duplicates={_NEAR} keeps the first of each"
        )
    if steady is not None and steady.overlap[0] < (1 + steady.chance) / 2:
        more = ", ".join(f"{value:.0%} with num_samples: {k}" for k, value in steady.overlap_with.items())
        found.append(
            f"another run with other draws would share about {steady.overlap[0]:.0%} of this choice, "
            f"{steady.chance:.0%} would be chance; with more answers {more}; see adg stability"
        )
    if cut_share <= _CUT_ANSWERS:
        return found
    return [
        *found,
        f"{cut_share:.0%} of the answers here were cut at max_new_tokens ({config.max_new_tokens}): the score compares "
        "their beginnings; raise it if the model's own answers are longer",
    ]


def _rejected(rejections: Iterable[Rejection]) -> list[dict[str, str]]:
    seen: Counter[str] = Counter()
    found = []
    for rejection in rejections:
        seen[rejection.reason] += 1
        if seen[rejection.reason] <= _REJECTED_EXAMPLES:
            found.append(
                {
                    "reason": rejection.reason,
                    "id": rejection.id,
                    "where": rejection.where,
                    "detail": rejection.detail[:300],
                }
            )
    return found
