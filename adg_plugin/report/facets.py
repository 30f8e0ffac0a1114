"""What the pool is made of: columns of the rows, languages, lengths."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from adg_plugin.data.text import known_languages, language_of
from adg_plugin.errors import MissingExtraError
from adg_plugin.store import RunReader

# Columns that data sets use for where a row came from and what it is about.
_COLUMNS = {
    "source": ("source", "data_source", "origin", "dataset"),
    "category": ("category", "task", "task_type", "domain", "topic", "subject", "type"),
}
_MOST_VALUES = 12  # of a facet; the rest are counted together
_MOST_DISTINCT = 2_000  # more: a column of texts, not of kinds
_LANGUAGE_ROWS = 5_000
_LONGEST_VALUE = 60  # characters

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Facet:
    """A kind that rows are of."""

    values: npt.NDArray[np.object_]  # (N,) of each row; None where it has none, or nobody looked
    # (N,) the rows that stand for the pool; None: all. Chosen rows are counted wherever they are known.
    sample: npt.NDArray[np.bool_] | None = None

    def counted(self, chosen: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
        """Return `value`, `pool`, `chosen` (rows) of each value, most frequent first; rows without one are left out."""
        in_pool = self.values if self.sample is None else self.values[self.sample]
        pool = Counter(value for value in in_pool if value is not None)
        among = Counter(value for value in self.values[chosen] if value is not None)
        frequent = sorted({*pool, *among}, key=lambda value: (-pool[value], value))
        counted = [{"value": value, "pool": pool[value], "chosen": among[value]} for value in frequent[:_MOST_VALUES]]
        if rest := frequent[_MOST_VALUES:]:
            other = {"pool": sum(pool[value] for value in rest), "chosen": sum(among[value] for value in rest)}
            counted.append({"value": f"{len(rest)} others", **other})
        return counted


@dataclass(slots=True)
class Facets:
    """What is known of the N scored rows beside their scores, in the order of their ids."""

    prompt_tokens: Ints  # (N,) of the rendered prompts
    reference_words: Ints  # (N,) of the reference responses
    kinds: dict[str, Facet] = field(default_factory=dict)  # by name; one that no row has is left out
    instructions: list[str] = field(default_factory=list)  # (N,) the first characters of each instruction


def read_facets(run: RunReader, ids: Sequence[str], paths: Sequence[str], characters: int) -> Facets:
    """Return the facets of the rows `ids`, reading the staged pool once.

    Args:
        ids: (N,) of the scored rows.
        paths: of the settings' data sets, which serve as source where rows name none.
        characters: kept of each instruction.
    """
    place = {id: row for row, id in enumerate(ids)}
    facets = Facets(np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64), {}, [""] * len(ids))
    kinds = {name: np.full(len(ids), None, dtype=object) for name in (*_COLUMNS, "data set")}
    columns = ["id", "num_tokens", "instruction", "reference", "data", "dataset"]
    for row in (row for table in run.staged_columns(columns) for row in table.to_pylist()):
        at = place.get(row["id"])
        if at is None:
            continue
        facets.prompt_tokens[at] = row["num_tokens"]
        facets.reference_words[at] = len((row["reference"] or "").split())
        facets.instructions[at] = " ".join(row["instruction"].split())[:characters]
        data = json.loads(row["data"])
        for name, names in _COLUMNS.items():
            value = next((data[column] for column in names if isinstance(data.get(column), str | int)), None)
            if value is not None and str(value).strip():
                kinds[name][at] = str(value)[:_LONGEST_VALUE]
        if len(paths) > 1:
            kinds["data set"][at] = paths[row["dataset"] or 0]
    for name, values in kinds.items():
        distinct = len({value for value in values if value is not None})
        if 1 < distinct <= max(2, min(_MOST_DISTINCT, len(values) // 2)):
            facets.kinds[name] = Facet(values)
    return facets


def add_languages(facets: Facets, chosen: npt.NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Add the facet `language`, where the package that tells languages is installed; of large pools, of a sample.

    As many chosen rows are looked at as rows of the pool, of which few may be chosen.
    """
    try:
        known_languages()
    except MissingExtraError:
        return
    rows = len(chosen)
    sample = np.zeros(rows, dtype=bool)
    sample[rng.permutation(rows)[:_LANGUAGE_ROWS]] = True
    looked_at = sample.copy()
    looked_at[rng.permutation(np.flatnonzero(chosen))[:_LANGUAGE_ROWS]] = True
    found = np.full(rows, None, dtype=object)
    for row in np.flatnonzero(looked_at):
        found[row] = language_of(facets.instructions[row]) or "cannot tell"
    facets.kinds["language"] = Facet(found, None if sample.all() else sample)
