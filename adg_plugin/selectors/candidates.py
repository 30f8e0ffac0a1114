"""The rows that a selector chooses among, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.decision import Decision, Floats, percentiles
from adg_plugin.store import Rejection, RunReader

Ints = npt.NDArray[np.integer]

CHOSEN = "among the best"
BELOW = "below the cut"
NOT_REACHED = "not reached"  # of a method that goes step by step


@dataclass(frozen=True, slots=True)
class Candidates:
    """The rows that could be sampled, by ascending id: the order of the pool plays no part.

    Attributes:
        instructions: each row's own words, with its input.
        references: each row's own answer, "" where it has none.
        where: file and line of each row.
        data: each row as it was found, a JSON object as text; only where it was asked for.
    """

    ids: npt.NDArray[np.object_]  # (N,)
    instructions: Sequence[str]
    references: Sequence[str]
    where: Sequence[str]
    data: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> list[Any]:
        """Return the value of a column of each row, None where a row lacks it."""
        return [json.loads(text).get(name) for text in self.data]

    def keep(self, kept: npt.NDArray[np.bool_]) -> Candidates:
        """Return the rows (N,) that are to stay."""
        rows = np.flatnonzero(kept).tolist()
        of = (self.instructions, self.references, self.where, self.data)
        return Candidates(self.ids[kept], *([texts[row] for row in rows] if texts else [] for texts in of))


def read_candidates(run: RunReader, *, data: bool = False) -> Candidates:
    """Return the staged prompts of a run folder. Memory holds their texts.

    Args:
        data: with each row as it was found.
    """
    names = ["id", "instruction", "reference", "where", *(["data"] if data else [])]
    whole = pa.concat_tables(run.staged_columns(names)).sort_by("id")  # by code point, as everywhere
    ids, *texts = (whole[name].to_pylist() for name in names)
    return Candidates(np.array(ids, dtype=object), *texts)


@dataclass(frozen=True, slots=True)
class Picked:
    """The choice among N candidates.

    Attributes:
        rows: of the choice, the best first.
        scores: (N,), higher is better; NaN where a method that goes step by step never came to the row.
        columns: (N,) each: what the score was made of.
        warnings: sentences.
    """

    rows: Ints
    scores: Floats
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


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
    parts = {
        name: percentiles(np.asarray(values)) for name, values in picked.columns.items() if values.dtype.kind in "fiu"
    }
    return Decision(
        table=pa.table(columns),
        ids=tuple(str(candidates.ids[row]) for row in picked.rows),
        score={"form": form, **parts, "score": percentiles(picked.scores)},
        warnings=(*warnings, *picked.warnings),
        rejections=tuple(rejections),
    )


def _nullable(values: npt.NDArray[Any]) -> pa.Array:
    """Return the values as a column, null where they are NaN."""
    return pa.array(values, mask=np.isnan(values))


def highest(scores: Floats, budget: int) -> Ints:
    """Return the rows of the highest scores, the best first; equal scores in the order of the rows, that is of ids."""
    best: Ints = np.argsort(-scores, kind="stable")[:budget]
    return best
