"""Why a method other than ADG chose one row or left it out, from what the run folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.config.methods import Method
from adg_plugin.config.schema import ADGConfig
from adg_plugin.selectors.columns import STEPWISE, Number, part_names, plain, shown
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
    method: Method
    parts: dict[str, Number]
    score: Number
    rank: int | None
    rows: int
    chosen: bool
    reason: str
    changes: tuple[str, ...]


def explain_by_method(run: RunReader, config: ADGConfig, table: pa.Table, at: int) -> MethodExplanation:
    """Return why row `at` of the scores was chosen or left out.

    Args:
        run: of a finished selection.
        config: of it; `method` is any but `adg`.
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
        method=config.method,
        parts={name: plain(row[name]) for name in part_names(table)},
        score=plain(row["score"]),
        rank=row["rank"],
        rows=len(table),
        chosen=row["chosen"],
        reason=row["reason"],
        changes=tuple(_changes(table, at, config.method)),
    )


def _changes(table: pa.Table, at: int, method: Method) -> Iterator[str]:
    chosen, rank = table["chosen"][at].as_py(), table["rank"][at].as_py()
    budget = pc.sum(table["chosen"]).as_py()
    if budget == len(table):
        yield "every row that could be chosen was"
    if method == "random" and budget < len(table):
        yield f"the rows are drawn uniformly at random: another seed may {'leave it out' if chosen else 'choose it'}"
    elif method not in STEPWISE and budget < len(table):
        yield _cut(table, at, budget, chosen=chosen)
    if rank is None:
        yield (
            f"{method} chooses one row after another and looks at each only beside those before it: after {budget:,} "
            "it had not come to this one; a larger budget adds rows and takes none away"
        )
    elif not chosen:
        yield f"a budget of {rank:,} would have reached it"
    elif rank > 1:
        yield f"a budget below {rank:,} would have left it out"


def _cut(table: pa.Table, at: int, budget: int, *, chosen: bool) -> str:
    """Return what score would have decided otherwise: that of the first row left out, or of the last one chosen."""
    place = table["rank"].to_pylist().index(budget + 1 if chosen else budget)
    other, own = (table["score"][row].as_py() for row in (place, at))
    away, other = shown(plain(other - own), "+"), plain(other)
    if chosen:
        return f"a score below {shown(other)} ({away}) would have left it out"
    return f"a score above {shown(other)} ({away}) would have chosen it"
