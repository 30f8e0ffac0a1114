"""Why a method other than ADG chose one row or left it out, from what the run folder holds."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.selectors.base import Selector
from adg_plugin.selectors.columns import Number, part_names, plain
from adg_plugin.store import RunReader


@dataclass(frozen=True, slots=True)
class MethodExplanation:
    """Everything that decided over one row.

    Attributes:
        prompt: the rendered prompt; `instruction` are the row's own words, `reference` its reference response.
        where: file and line of the row.
        parts: by column, what the score was made of; None where the method never came to the row, like `score`.
        rank: among the `rows` that could be chosen, 1 is the best; None where the method never came to the row.
        changes: sentences: what would have changed the choice.
    """

    id: str
    where: str
    prompt: str
    instruction: str
    reference: str
    chooser: Selector
    parts: dict[str, Number]
    score: Number
    rank: int | None
    rows: int
    chosen: bool
    reason: str
    changes: tuple[str, ...]


def explain_by_method(
    run: RunReader, config: ADGConfig, chooser: Selector, table: pa.Table, at: int
) -> MethodExplanation:
    """Return why row `at` of the scores was chosen or left out.

    Args:
        run: of a finished selection.
        config: of it.
        chooser: the selector that it names.
        table: its scores.
        at: a row of them.
    """
    row = table.slice(at, 1).to_pylist()[0]
    (staged,) = run.staged_rows([row["id"]])
    return MethodExplanation(
        id=row["id"],
        where=staged.where,
        prompt=staged.text,
        instruction=staged.prompt.instruction,
        reference=staged.reference,
        chooser=chooser,
        parts={name: plain(row[name]) for name in part_names(table)},
        score=plain(row["score"]),
        rank=row["rank"],
        rows=len(table),
        chosen=row["chosen"],
        reason=row["reason"],
        changes=tuple(chooser.changes(table, at, config)),
    )
