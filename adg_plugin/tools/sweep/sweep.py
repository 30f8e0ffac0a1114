"""What other settings would have chosen, from the stored answers of a finished run. Nothing is sampled or stored."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product as all_of
from typing import Any, get_args

import numpy as np

from adg_plugin.config.groups import ScoreForm, Subset
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError
from adg_plugin.pipeline.stage import pool_counts
from adg_plugin.store import RunFolder, RunReader
from adg_plugin.store.reader import check_answers, finished
from adg_plugin.tools.sweep.choices import Embedding, Rows, Similarity, compared, embed_again

Vary = Mapping[str, Sequence[Any]]
STORED = ("weight", "score", "num_samples", "bins", "budget", "subset")  # Gram matrices are enough for these
EMBEDDED = ("layers", "pooling")  # these need the model
KEYS = (*STORED, *EMBEDDED)
_WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class Variant:
    """The settings `config`, which differ from the run's by `changes`."""

    changes: dict[str, Any]
    config: ADGConfig

    @property
    def name(self) -> str:
        """The changes as a user writes them, `bins=none`, and what a weight at either end means."""
        return ", ".join(self._describe(key, value) for key, value in self.changes.items())

    def _describe(self, key: str, value: Any) -> str:
        if key == "weight":
            alone = {0.0: " (D alone)", 1.0: " (I alone)"} if self.config.score != "residual" else {}
            return f"weight={value:g}" + alone.get(value, "")
        return f"{key}={'none' if value is None else value}"

    @property
    def embedding(self) -> Embedding | None:
        """The layers and pooling of its vectors; None: the stored ones."""
        if not any(key in self.changes for key in EMBEDDED):
            return None
        return self.config.layers, self.config.pooling


@dataclass(frozen=True, slots=True)
class Line:
    """A variant and how its choice compares with the run's; `own`: its settings are the run's."""

    name: str
    changes: dict[str, Any]
    own: bool
    found: Similarity

    def summary(self) -> dict[str, Any]:
        """Return the figures, for JSON."""
        return {"name": self.name, "changes": self.changes, "own": self.own, **asdict(self.found)}


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found.

    Attributes:
        settings: the run's own, of the keys that can be varied.
        rows: scored rows.
        run: the run's choice; every measure of it against itself.
        lines: by variant, from the stored Gram matrices.
        part: the run's settings on the rows that were embedded again; None if none were.
        part_lines: by variant, on those rows.
        notes: sentences about what the figures rest on.
    """

    settings: dict[str, Any]
    rows: int
    run: Similarity
    lines: tuple[Line, ...]
    part: Similarity | None
    part_lines: tuple[Line, ...]
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return the figures, for JSON."""
        part = self.part and {"run": asdict(self.part), "variants": [line.summary() for line in self.part_lines]}
        return {
            "settings": self.settings,
            "rows": self.rows,
            "run": asdict(self.run),
            "variants": [line.summary() for line in self.lines],
            "embedded_again": part,
            "notes": list(self.notes),
        }


def sweep(
    run_dir: str,
    vary: Vary | None = None,
    *,
    product: bool = False,
    rows: int | None = None,
    show_progress: bool = True,
) -> Sweep:
    """Return how the choices of other settings compare with that of a finished run.

    Args:
        run_dir: the run folder; nothing in it changes.
        vary: values by key, of `STORED` and `EMBEDDED`; default weight, score, num_samples, bins and subset. The model
            is loaded only for `layers` and `pooling`.
        product: vary all keys together, not one at a time.
        rows: embed only so many rows, drawn at random; they are compared among themselves.

    Raises:
        ConfigError: a key that cannot be varied, values that settings cannot have, with every problem found; or another
            method than ADG chose.
        StoreError: not a run folder, one without a result or without its answers, or one of another model.
        ModelError: the model cannot be loaded, or has fewer layers.
        DataError: no row can be embedded again.
    """
    run = RunFolder.read(run_dir)
    config = finished(run)
    config.refuse_other_methods("`adg sweep` chooses anew from the answers that ADG draws")
    most = int(np.max(run.scores()["num_answers"].to_numpy()))
    if vary is None:
        asked = default_changes(config, most)
    elif product:
        asked = [dict(zip(vary, values, strict=True)) for values in all_of(*vary.values())]
    else:
        asked = [{key: value} for key, values in vary.items() for value in values]
    found = variants(config, asked, most=most)
    stored = [variant for variant in found if variant.embedding is None]
    embedded = [variant for variant in found if variant.embedding is not None]
    if rows is not None and not embedded:
        raise ConfigError([f"--rows is {rows}: only layers and pooling are embedded again; vary one of them"])
    of_bins = {config.bins, 1}  # these need no prompt vectors
    vectors = bool(embedded) or any(variant.config.bins not in of_bins for variant in stored)
    whole = _whole(run, config, vectors=vectors)
    itself, lines = _lines(whole, stored)
    part: Similarity | None = None
    part_lines: tuple[Line, ...] = ()
    notes = list(_notes(config, found, whole))
    if embedded:
        smaller, lost = _embedded(run, whole, embedded, rows, show_progress=show_progress)
        part, part_lines = _lines(smaller, embedded)
        notes.append(
            "layers, pooling: the stored answers, embedded again by a forward pass in batches of its own; "
            f"layers={config.layers} and pooling={config.pooling}, the run's own, show what rounding alone changes"
        )
        if len(smaller) < len(whole):
            notes.append(
                f"layers, pooling: {len(smaller):,} of {len(whole):,} rows, compared among themselves: "
                f"{part.chosen:,} chosen, with bins in proportion"
            )
        if lost:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(lost.items()))
            of = len(smaller) + lost.total()
            notes.append(f"{lost.total()} of {of} rows could not be embedded again ({reasons}) and are left out")
    settings = config.model_dump(mode="json", include=set(KEYS))
    return Sweep(settings, len(whole), itself, lines, part, part_lines, tuple(dict.fromkeys(notes)))


def default_changes(config: ADGConfig, most: int) -> list[dict[str, Any]]:
    """Return what is varied by default, without the run's own values; `most`: stored answers per row."""
    raw = {"score": "raw"} if config.score == "residual" else {}  # which has no weight
    asked: list[dict[str, Any]] = [{**raw, "weight": weight} for weight in _WEIGHTS]
    asked += [{"score": form} for form in get_args(ScoreForm)]
    asked += [{"num_samples": samples} for samples in range(3, most)]
    asked += [{"bins": bins} for bins in (1, None)]
    asked += [{"subset": subset} for subset in get_args(Subset)]
    return [changes for changes in asked if not _is_own(config, changes)]


def variants(config: ADGConfig, asked: Sequence[Mapping[str, Any]], *, most: int) -> list[Variant]:
    """Return the settings to compare, in the order in which they were asked for, none twice.

    Args:
        asked: changes of the run's `config`.
        most: stored answers per row.

    Raises:
        ConfigError: with every problem found.
    """
    problems: list[str] = []
    found: list[Variant] = []
    for changes in asked:
        if wrong := [_unknown(key) for key in changes if key not in KEYS]:
            problems += wrong
            continue
        try:
            updated = config.updated(**changes)
        except ConfigError as err:
            problems += err.problems
            continue
        if updated.num_samples > most and "num_samples" in changes:
            fix = f"the run has {most} answers per row; use 3 to {most}, or select again into another folder"
            problems.append(f"num_samples is {updated.num_samples}: {fix}")
        parsed = {key: getattr(updated, key) for key in changes}  # 0 and 0.0 are one weight
        if parsed not in [variant.changes for variant in found]:
            found.append(Variant(parsed, updated))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), source="--vary")
    return found


def _is_own(config: ADGConfig, changes: Mapping[str, Any]) -> bool:
    return all(value == getattr(config, key) for key, value in changes.items())


def _unknown(key: str) -> str:
    if key in ADGConfig.model_fields:
        return f"{key} cannot be varied without sampling again: use {', '.join(KEYS)}, or select into another folder"
    close = difflib.get_close_matches(key, KEYS, n=1)
    return f"{key} is not a setting: " + (f"did you mean `{close[0]}`?" if close else f"use {', '.join(KEYS)}")


def _whole(run: RunReader, config: ADGConfig, *, vectors: bool) -> Rows:
    """Return all scored rows, binned and chosen as the run did."""
    geometry = run.geometry(vectors=vectors)
    check_answers(run, geometry)
    table = run.scores()
    # Filters may have left answered rows out.
    scored = np.isin(geometry.ids.astype(str), table["id"].to_numpy().astype(str))
    geometry = geometry.without(~scored, ())
    return Rows(
        geometry={None: geometry},
        answer_tokens=geometry.answer_tokens / table["num_answers"].to_numpy(),
        config=config,
        pool_rows=pool_counts(run).unique,
        scored=len(geometry),
        bins=table["bin"].to_numpy(),
        chosen=table["chosen"].to_numpy(zero_copy_only=False),
    )


def _embedded(
    run: RunReader, whole: Rows, found: Sequence[Variant], rows: int | None, *, show_progress: bool
) -> tuple[Rows, Counter[str]]:
    """Return the rows that were embedded again, all or a random part, and how many could not be, by reason."""
    sampled = np.zeros(len(whole), dtype=bool)
    count = len(whole) if rows is None else min(rows, len(whole))
    sampled[np.random.default_rng(whole.config.seed).choice(len(whole), count, replace=False)] = True
    stored = whole.geometry[None]
    embeddings = list(dict.fromkeys(variant.embedding for variant in found if variant.embedding is not None))
    embedded, lost = embed_again(
        run, whole.config, stored.without(~sampled, ()), embeddings, show_progress=show_progress
    )
    kept = np.isin(stored.ids.astype(str), embedded[embeddings[0]].ids.astype(str))
    return whole.part(kept, embedded), lost


def _lines(rows: Rows, variants: Sequence[Variant]) -> tuple[Similarity, tuple[Line, ...]]:
    """Return the run's choice among some rows against itself, and each variant against it."""
    base = rows.own()
    lines = []
    for one in variants:
        found = compared(base, rows.made(one.config, one.embedding), rows)
        lines.append(Line(one.name, one.changes, _is_own(rows.config, one.changes), found))
    return compared(base, base, rows), tuple(lines)


def _notes(config: ADGConfig, found: Sequence[Variant], whole: Rows) -> Iterator[str]:
    varied = {key for variant in found for key in variant.changes}
    if "num_samples" in varied:
        yield (
            "num_samples: the first of each row's stored answers; a run with another num_samples draws others, so its "
            "choice shares less"
        )
    if "weight" in varied and any(v.config.score == "residual" for v in found if "weight" in v.changes):
        yield "score: residual has no weight: varying it changes nothing"
    if config.filters.looks_at_answers:
        yield "the rows that filters on the sampled answers rejected stay rejected"
    for variant in found:
        if "budget" in variant.changes and (warning := whole.budget(variant.config)[1]):
            yield warning
