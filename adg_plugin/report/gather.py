"""What a finished run folder has to say, gathered once for the page, the figures and the JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.filters.near_duplicates import NearDuplicates, text_shingles
from adg_plugin.data.rows import Reason
from adg_plugin.errors import MissingExtraError, StoreError
from adg_plugin.report import rows
from adg_plugin.report.choice_figures import adg_figures, method_figures
from adg_plugin.report.compared import overlaps, read_compared
from adg_plugin.report.evaluated import read_evaluations
from adg_plugin.report.facets import add_languages, read_facets
from adg_plugin.report.figures import Figure, composition
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
_MOST_ROWS_OF_STABILITY = 200_000  # more would take minutes
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
    ids, chosen = table["id"].to_pylist(), table["chosen"].to_numpy()
    quadrants = steady = cut_share = None
    if chooser.by_divergence:
        geometry = _geometry(run, table)
        quadrants, medians = _quadrants(table)
        if len(table) <= _MOST_ROWS_OF_STABILITY:
            steady = stability_of(calibrated(geometry.grams), geometry.ids, table["bin"].to_numpy(), chosen, config)
    rng = np.random.default_rng(config.seed)
    facets = read_facets(run, ids, [spec.path for spec in config.datasets], _CHARACTERS)
    add_languages(facets, chosen, rng)
    listed = rows.listed_rows(table, rows.MOST_ROWS, rng)
    at_random = np.sort(rng.permutation(len(table))[: rows.MOST_ANSWERED // 2])
    listed = np.union1d(listed, at_random)
    answered = rows.answered_rows(table, listed, at_random, rows.MOST_ANSWERED)
    texts = rows.texts(run, [ids[row] for row in answered])
    # Answers of an earlier choice by ADG may be there, but this one has nothing to do with them.
    if chooser.by_divergence:
        of = [texts[ids[row]]["answers"] for row in at_random if ids[row] in texts]
        cut_share = float(np.mean([answer[2] for answers in of for answer in answers] or [0.0]))
    repeated = _near_duplicates(run, [ids[row] for row in np.flatnonzero(chosen)])
    columns, stability = rows.columns(table, facets, listed), None
    if steady is not None:
        columns["again"] = [round(float(value), 2) for value in steady.again[listed]]
        stability = steady.summary()
        stability["near_the_cut"] = stability["near_the_cut"][:_NEAR_THE_CUT]
    companions, of_companions, unusable = _companions(run, manifest)
    warnings = [*manifest["warnings"], *_warnings(config, cut_share or 0.0, steady, repeated), *unusable]
    about = {
        "summary": _summary(run, manifest, config, gpu_hour_price),
        "score": manifest["score"],
        "quadrants": quadrants,
        "composition": {name: facet.counted(chosen) for name, facet in facets.kinds.items()},
        "sampled": [name for name, facet in facets.kinds.items() if facet.sample is not None],
        "rejected": manifest["rows"]["rejected"],
        "answers_cut_at_the_limit": cut_share,
        "near_duplicates": repeated,
        "stability": stability,
        **companions,
        "warnings": [*warnings, *run.damage],
    }
    if chooser.by_divergence:
        shown = adg_figures(table, geometry.prompt_vectors, facets, manifest, medians, rng)
    else:
        shown = method_figures(table, facets, chooser)
    for name, values in about["composition"].items():
        shown.append(composition(name, values, sampled=name in about["sampled"]))
    return Gathered(about, (*shown, *of_companions), columns, texts, _rejected(run.rejections()))


def _without_selection(run: RunReader) -> Gathered:
    """Return what a comparison has to say in a run folder where nothing is selected yet."""
    companions, of_companions, unusable = _companions(run, None)
    compared = companions["comparison"]
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
        **companions,
        "warnings": [alone, *unusable, *run.damage],
    }
    table: dict[str, Any] = {"id": [], "instruction": []}
    return Gathered(about, of_companions, table, {}, _rejected(run.staged_rejections()))


def _companions(
    run: RunReader, manifest: Mapping[str, Any] | None
) -> tuple[dict[str, Any], tuple[Figure, ...], list[str]]:
    """Return choices of other methods and evaluations of trained models, figures of these, and warnings.

    A file that cannot be used is a warning, and no reason to fail.
    """
    comparison, warnings = None, []
    try:
        comparison = read_compared(run, manifest)
    except StoreError as err:
        warnings.append(str(err))
    evaluations, more = read_evaluations(run.path, manifest)
    shown = (overlaps(comparison),) if comparison and len(comparison["names"]) > 1 else ()
    return {"comparison": comparison, "evaluations": evaluations}, shown, [*warnings, *more]


def _geometry(run: RunReader, table: pa.Table) -> Geometry:
    """Return the geometry of the scored rows, without those that a filter on the answers has rejected."""
    geometry = run.geometry()
    check_answers(run, geometry)
    scored = pc.is_in(pa.array(geometry.ids, pa.string()), value_set=table["id"]).to_numpy(zero_copy_only=False)
    return geometry.without(~scored, ())


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
    if cut_share > _CUT_ANSWERS:
        found.append(
            f"{cut_share:.0%} of the answers here were cut at max_new_tokens ({config.max_new_tokens}): the score "
            "compares their beginnings; raise it if the model's own answers are longer"
        )
    return found


def _rejected(rejections: Iterable[Rejection]) -> list[dict[str, str]]:
    seen: Counter[str] = Counter()
    found = []
    for one in rejections:
        seen[one.reason] += 1
        if seen[one.reason] <= _REJECTED_EXAMPLES:
            found.append({"reason": one.reason, "id": one.id, "where": one.where, "detail": one.detail[:300]})
    return found
