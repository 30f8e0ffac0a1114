"""The rows that a selector chooses among, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.config.schema import IN_MEMORY, DatasetSpec
from adg_plugin.data.cells import Reason
from adg_plugin.data.rows import has_answer
from adg_plugin.scoring.geometry import percentiles
from adg_plugin.selectors.columns import OF_ALL
from adg_plugin.store import Rejection, RunReader

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]
Why = tuple[str, str]  # reason and detail

NeedsReference = Literal["text", "turn", "none"]

CHOSEN = "among the best"
BELOW = "below the cut"
NOT_REACHED = "not reached"  # of a method that goes step by step
NO_ANSWER = "there is no answer of the row's own; name its column (field_output, field_completion) if there is one"

_FIELDS = {"instruction": "instructions", "reference": "references", "where": "where", "data": "data"}


@dataclass(frozen=True, slots=True)
class Candidates:
    """The rows that could be sampled, by ascending id: the order of the pool plays no part.

    Of the texts only those are there that `reads` names.
    """

    ids: npt.NDArray[np.object_]  # (N,)
    instructions: Sequence[str] = ()  # each row's own words, with its input
    references: Sequence[str] = ()  # each reference response
    where: Sequence[str] = ()  # file and line of each row; always there
    data: Sequence[str] = ()  # each row as it was found, a JSON object as text

    def __len__(self) -> int:
        return len(self.ids)

    def columns(self, *names: str) -> list[tuple[Any, ...]]:
        """Return values of columns by row, None where it lacks one; a ValueError unless `reads` names `data`."""
        if len(self.data) < len(self.ids):
            raise ValueError('columns of the rows are in their data: add "data" to reads')
        rows = map(json.loads, self.data)
        return [tuple(row.get(name) for name in names) for row in rows]

    def keep(self, kept: npt.NDArray[np.bool_]) -> Candidates:
        """Return the rows (N,) that are to stay."""
        rows = np.flatnonzero(kept).tolist()
        of = (self.instructions, self.references, self.where, self.data)
        return Candidates(self.ids[kept], *([texts[row] for row in rows] if texts else [] for texts in of))


def read_candidates(
    run: RunReader,
    columns: Sequence[str] = (),
    *,
    needs_reference: NeedsReference = "text",
    specs: Sequence[DatasetSpec] = (IN_MEMORY,),
) -> tuple[Candidates, list[Rejection]]:
    """Return the staged prompts of a run folder that have an answer of their own, and the others as rejections.

    Training has no use for a row without an answer, so few methods may spend their budget on one. The pool is read a
    group at a time: as one Arrow array, a column of text ends at 2 GiB.

    Args:
        columns: of the texts that memory is to hold: `instruction`, `reference`, `data`.
        needs_reference: what it must have: text; a turn, which may only call tools and can be trained on; or
            nothing, and no row is left out.
        specs: how the rows of each data set of the pool are read.
    """
    held: dict[str, list[str]] = {name: [] for name in ("id", "where", *columns)}
    answered: list[bool] = []
    for table in run.staged_columns(list(dict.fromkeys([*held, "reference"]))):
        answered += [bool(found and found.strip()) for found in table["reference"].to_pylist()]
        for name, values in held.items():
            values += table[name].to_pylist()
    ids, where = held["id"], held["where"]
    if needs_reference == "none":
        answered = [True] * len(ids)
    elif needs_reference == "turn" and not all(answered):
        turns = _with_an_answer_turn(run, specs)
        answered = [known or id in turns for known, id in zip(answered, ids, strict=True)]
    order = sorted(range(len(ids)), key=ids.__getitem__)  # by code point, as everywhere
    kept = [row for row in order if answered[row]]
    texts = {field: [held[name][row] for row in kept] for name, field in _FIELDS.items() if name in held}
    candidates = Candidates(np.array([ids[row] for row in kept], dtype=object), **texts)
    left = [Rejection(ids[r], Reason.NO_ANSWER.value, NO_ANSWER, where=where[r]) for r in order if not answered[r]]
    return candidates, left


def _with_an_answer_turn(run: RunReader, specs: Sequence[DatasetSpec]) -> set[str]:
    """Return the ids of the rows whose answer is a turn without text."""
    found = set()
    for table in run.staged_columns(["id", "reference", "data", "dataset"]):
        for id, reference, data, entry in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if not (reference and reference.strip()) and has_answer(json.loads(data), specs[entry]):
                found.add(id)
    return found


@dataclass(frozen=True, slots=True)
class Picked:
    """The choice among N candidates."""

    rows: Ints  # of the choice, the best first
    scores: Floats  # (N,), higher is better; NaN where a row has none, as those that a stepwise method did not choose
    # (N,) numbers each, for instance what the score was made of; NaN where a row has none.
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    warnings: Sequence[str] = ()  # sentences

    @classmethod
    def best(cls, scores: npt.ArrayLike, budget: int, columns: Mapping[str, npt.ArrayLike] | None = None) -> Picked:
        """Return the rows of the highest scores (N,), equal ones in the order of the rows, that is of their ids.

        A row with a score of NaN is not chosen.
        """
        known = np.asarray(scores, dtype=np.float64)
        order = np.argsort(-known, kind="stable")[: min(budget, int((~np.isnan(known)).sum()))]
        return cls(order, known, {name: np.asarray(values) for name, values in (columns or {}).items()})

    @classmethod
    def stepwise(
        cls,
        order: npt.ArrayLike,
        total: int,
        steps: Mapping[str, npt.ArrayLike] | None = None,
        columns: Mapping[str, npt.ArrayLike] | None = None,
        warnings: Sequence[str] = (),
    ) -> Picked:
        """Return the rows that were chosen one after another, among N.

        Args:
            order: (M,) rows, the first choice first; its score is M, the last one's 1.
            total: N.
            steps: (M,) numbers each, in this order: what each step found.
            warnings: sentences.
        """
        rows = np.asarray(order, dtype=np.int64)

        def of_chosen(values: npt.ArrayLike) -> Floats:
            found = np.full(total, np.nan)
            found[rows] = values
            return found

        of_steps = {name: of_chosen(values) for name, values in (steps or {}).items()}
        of_all = {name: np.asarray(values) for name, values in (columns or {}).items()}
        return cls(rows, of_chosen(np.arange(len(rows), 0, -1)), {**of_steps, **of_all}, tuple(warnings))


Pick = Callable[[Candidates, int], Picked]  # rows and budget -> the choice


def as_picked(found: object, total: int, budget: int) -> Picked:
    """Return a choice of at most `budget` of `total` rows, typed as `Picked`; a ValueError says why it is none."""
    if not isinstance(found, Picked):
        raise ValueError(f"pick returned {type(found).__name__}, not a Picked")
    if taken := sorted(set(OF_ALL) & found.columns.keys()):
        raise ValueError(f"its column {taken[0]!r} is one that every method has: give it another name")
    rows = _array(found.rows)
    if rows is None or (len(rows) and rows.dtype.kind not in "iu") or not _are_a_choice(rows, total, budget):
        raise ValueError(f"its rows are to be up to {budget} different numbers from 0 to {total - 1}")
    columns = {}
    for name, values in {"scores": found.scores, **found.columns}.items():
        column = _array(values)
        if column is None or column.shape != (total,) or column.dtype.kind not in "fiu":
            raise ValueError(f"its {name} are to be {total} numbers, one for each row")
        columns[name] = column
    warnings = (found.warnings,) if isinstance(found.warnings, str) else tuple(found.warnings)
    return Picked(rows.astype(np.int64), columns.pop("scores").astype(np.float64), columns, warnings)


def _are_a_choice(rows: npt.NDArray[Any], total: int, budget: int) -> bool:
    return len(rows) <= budget and len(np.unique(rows)) == len(rows) and bool(np.isin(rows, np.arange(total)).all())


def _array(values: object) -> npt.NDArray[Any] | None:
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        return None
    return array if array.ndim == 1 else None


@dataclass(frozen=True, slots=True)
class Decision:
    """A choice, as the run folder keeps it: one form for all selectors."""

    table: pa.Table  # one row per candidate, by ascending id: at least `id`, `score`, `chosen`, `reason`
    ids: tuple[str, ...]  # of the chosen rows, the best first
    score: dict[str, Any]  # how the scores came out, for the manifest
    warnings: tuple[str, ...]
    rejections: tuple[Rejection, ...] = ()  # rows that this selector cannot choose, and why
    bins: int | None = None  # how many there were; None where the selector knows none
    answer_tokens: int = 0  # sampled for it

    @classmethod
    def none(cls, rejections: Sequence[Rejection]) -> Decision:
        """Return the decision where no row can be chosen."""
        return cls(pa.table({"id": pa.array([], pa.string())}), (), {}, (), tuple(rejections))


def decided(
    candidates: Candidates, picked: Picked, form: str, warnings: Sequence[str], rejections: Sequence[Rejection]
) -> Decision:
    """Return the choice as the run folder keeps it; `rank` is a row's place, 1 the best, null where it has none."""
    total = len(candidates)
    chosen = np.zeros(total, dtype=bool)
    chosen[picked.rows] = True
    rank = np.zeros(total, dtype=np.int32)
    rank[picked.rows] = np.arange(1, len(picked.rows) + 1)
    left = np.flatnonzero(~chosen & ~np.isnan(picked.scores))
    rank[left[np.argsort(-picked.scores[left], kind="stable")]] = len(picked.rows) + np.arange(1, len(left) + 1)
    columns: dict[str, Any] = {
        "id": pa.array(candidates.ids, pa.string()),
        **{name: _nullable(values) for name, values in picked.columns.items()},
        "score": _nullable(picked.scores),
        "rank": pa.array(rank, mask=rank == 0),
        "chosen": chosen,
        "reason": pa.array(np.where(chosen, CHOSEN, np.where(rank > 0, BELOW, NOT_REACHED)).tolist(), pa.string()),
    }
    parts = {name: percentiles(values) for name, values in picked.columns.items()}
    return Decision(
        table=pa.table(columns),
        ids=tuple(str(candidates.ids[row]) for row in picked.rows),
        score={"form": form, **parts, "score": percentiles(picked.scores)},
        warnings=(*warnings, *picked.warnings),
        rejections=tuple(rejections),
    )


def _nullable(values: npt.NDArray[Any]) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))


def without(candidates: Candidates, reasons: Sequence[Why | None]) -> tuple[Candidates, list[Rejection]]:
    """Return the candidates without those that have a reason against them, and these as rejections."""
    found = [
        Rejection(str(candidates.ids[row]), *reason, where=candidates.where[row])
        for row, reason in enumerate(reasons)
        if reason is not None
    ]
    return candidates.keep(np.array([reason is None for reason in reasons], dtype=bool)), found
