"""What a finished run folder has to say, gathered once for the page, the figures and the JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.cells import Reason
from adg_plugin.data.near_duplicates import NearDuplicates, text_shingles
from adg_plugin.errors import MissingExtraError, StoreError
from adg_plugin.report import rows
from adg_plugin.report.choice_figures import adg_figures, method_figures
from adg_plugin.report.compared import COMPARE, overlaps, read_compared
from adg_plugin.report.evaluated import read_evaluations
from adg_plugin.report.facets import add_languages, read_facets
from adg_plugin.report.figures import Figure, composition
from adg_plugin.scoring.jackknife import calibrated
from adg_plugin.scoring.stability import Stability, scored_geometry, stability_of
from adg_plugin.selectors.registry import selector
from adg_plugin.store import Rejection, RunFolder, RunReader
from adg_plugin.store.reader import finished, seconds_of

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
    """The contents of a report; where nothing is selected, `summary` has no method, and much is missing."""

    about: dict[str, Any]  # figures and facts, as JSON
    figures: tuple[Figure, ...]  # with their data
    table: dict[str, Any]  # the listed rows, column by column
    texts: dict[str, dict[str, Any]]  # of some rows in full, with their answers if there are any, by id
    rejected: list[dict[str, str]]  # examples of rejected rows


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
    evaluations, warnings = read_evaluations(run.path, manifest)
    try:
        comparison = read_compared(run, manifest)
    except StoreError as err:  # beside a selection no reason to fail
        if manifest is None:
            raise
        comparison, warnings = None, [str(err), *warnings]
    companions = {"comparison": comparison, "evaluations": evaluations}
    of_companions = [overlaps(comparison)] if comparison and len(comparison["names"]) > 1 else []
    if manifest is None and comparison is not None:
        about = {**_of_comparison(run, comparison), **companions}
        alone = f"{run.path} holds a comparison and no finished selection: adg select makes one, and its page has both"
        about["warnings"] = [alone, *warnings, *run.damage]
        rejected = _examples(run.staged_rejections())
        return Gathered(about, tuple(of_companions), {"id": [], "instruction": []}, {}, rejected)
    config = finished(run)
    assert manifest is not None
    table = run.scores()
    chooser = selector(config.method)
    ids, chosen = table["id"].to_pylist(), table["chosen"].to_numpy()
    quadrants = steady = stability = cut_share = None
    if chooser.by_divergence:
        geometry = scored_geometry(run)
        quadrants = _quadrants(table)
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
        drawn = [answer for row in at_random if ids[row] in texts for answer in texts[ids[row]]["answers"]]
        cut_share = float(np.mean([cut for _, _, cut in drawn] or [0.0]))
    repeated = _near_duplicates(run, [ids[row] for row in np.flatnonzero(chosen)])
    columns = rows.columns(table, facets, listed)
    if steady is not None:
        columns["again"] = [round(float(value), 2) for value in steady.again[listed]]
        stability = steady.summary()
        stability["near_the_cut"] = stability["near_the_cut"][:_NEAR_THE_CUT]
    found = _warnings(config, cut_share or 0.0, steady, repeated)
    about = {
        "summary": _summary(run, config.method, config, manifest, manifest["rows"])
        | _sampling(manifest, config, gpu_hour_price),
        "score": manifest["score"],
        "quadrants": quadrants,
        "composition": {name: facet.counted(chosen) for name, facet in facets.kinds.items()},
        "sampled": [name for name, facet in facets.kinds.items() if facet.sample is not None],
        "rejected": manifest["rows"]["rejected"],
        "answers_cut_at_the_limit": cut_share,
        "near_duplicates": repeated,
        "stability": stability,
        **companions,
        "warnings": [*manifest["warnings"], *found, *warnings, *run.damage],
    }
    if chooser.by_divergence:
        shown = adg_figures(table, geometry.prompt_vectors, facets, manifest, rng)
    else:
        shown = method_figures(table, facets, chooser)
    for name, values in about["composition"].items():
        shown.append(composition(name, values, sampled=name in about["sampled"]))
    return Gathered(about, (*shown, *of_companions), columns, texts, _examples(run.rejections()))


def _of_comparison(run: RunReader, compared: dict[str, Any]) -> dict[str, Any]:
    """Return what a comparison has to say in a run folder where nothing is selected yet."""
    config = ADGConfig.of_run(compared["config"], source=str(run.path / COMPARE))
    rejected = Counter(rejection.reason for rejection in run.staged_rejections())
    counts = {**compared["rows"], "pool": compared["rows"]["pool"] + rejected[Reason.DUPLICATE]}
    return {"summary": _summary(run, None, config, compared, counts), "rejected": dict(rejected.most_common())}


def _summary(
    run: RunReader, method: str | None, config: ADGConfig, told: Mapping[str, Any], counts: dict[str, Any]
) -> dict[str, Any]:
    """Return what a manifest and a comparison both tell."""
    return {
        "run": run.path.resolve().name,
        "created": told["created"],
        "method": method,
        "model": config.model or "in memory",
        "rows": counts,
        "settings": config.model_dump(mode="json", exclude_defaults=True),
        "recipe": told["recipe"],
        "versions": told["versions"],
    }


def _sampling(manifest: dict[str, Any], config: ADGConfig, price: float | None) -> dict[str, Any]:
    """Return what was sampled or, of another method, measured: in the last run, an interrupted one left no record."""
    sampling = manifest["sampling"]
    rating = sampling.get("rating", {})  # of mig, beside its tagger
    seconds, devices = seconds_of(sampling), config.devices(sampling.get("ranks", 1))
    found = {
        "answer_tokens": manifest["answer_tokens"],
        "sampled_rows": max(sampling.get("rows", 0), rating.get("rows", 0)),
        "sampling_seconds": seconds,
        "sampled_tokens": sampling.get("tokens", 0) + rating.get("tokens", 0),
        "devices": devices,
        "seconds": manifest["seconds"],
    }
    if price is not None:
        found["cost"] = None if devices is None else seconds / 3600 * price * devices
    return found


def _quadrants(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows and chosen rows of each quadrant around the medians."""
    chosen, *parts = (table[name].to_numpy() for name in ("chosen", "dispersion", "anisotropy"))
    is_far, is_wide = (part > np.median(part) for part in parts)
    found = []
    for far in (True, False):
        for wide in (True, False):
            inside = (is_far == far) & (is_wide == wide)
            name = {"dispersion": _HIGH[far], "anisotropy": _HIGH[wide]}
            found.append({**name, "rows": int(inside.sum()), "chosen": int((inside & chosen).sum())})
    return found


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


def _examples(rejections: Iterable[Rejection]) -> list[dict[str, str]]:
    seen: Counter[str] = Counter()
    found = []
    for one in rejections:
        seen[one.reason] += 1
        if seen[one.reason] <= _REJECTED_EXAMPLES:
            found.append({"reason": one.reason, "id": one.id, "where": one.where, "detail": one.detail[:300]})
    return found
