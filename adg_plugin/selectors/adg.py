"""ADG: sampled answers -> dispersion and anisotropy -> the best rows of each semantic bin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.config.groups import ScoreForm, ScoreSettings
from adg_plugin.config.schema import ADGConfig
from adg_plugin.scoring.bins import assign_bins
from adg_plugin.scoring.geometry import combine
from adg_plugin.scoring.quota import IN_QUOTA, allocate
from adg_plugin.scoring.score import choose_rows, eligible, score_summary
from adg_plugin.selectors.base import Selector, Task
from adg_plugin.selectors.candidates import Decision


class ADG(Selector):
    """Answer divergence-guided selection. Source: arXiv 2604.10448."""

    needs_reference = "none"
    samples_answers = True
    asks_backbone = True
    by_divergence = True
    settings = ("score", "weight", "bins", "subset")
    score_meaning = "dispersion and anisotropy of the sampled answers"

    def title(self, run: str) -> str:
        """Return the title of a report."""
        return f"ADG selection {run}"

    def decide(self, task: Task) -> Decision:
        """Return the choice among the rows with answers."""
        from adg_plugin.engines.forward.results import OUT_OF_MEMORY

        geometry = eligible(task.run, task.config.filters)
        # Rows without a result are few by now: what they lacked may be there another time.
        rejections = (*geometry.rejections, *task.run.unsampled(OUT_OF_MEMORY, task.skipped))
        if not len(geometry):
            return Decision.none(rejections)
        scored = choose_rows(geometry, task.config, task.pool_rows, task.assign or assign_bins)
        return Decision(
            table=scored.table(),
            ids=tuple(scored.chosen_ids()),
            score=score_summary(scored, task.config.score),
            warnings=scored.warnings,
            rejections=rejections,
            bins=int(scored.bins.max()) + 1,
            answer_tokens=int(geometry.answer_tokens.sum()),
        )

    def changes(self, table: pa.Table, at: int, config: ADGConfig) -> Iterator[str]:
        """Yield what would have changed the choice of row `at`, within its bin."""
        row = table.slice(at, 1).to_pylist()[0]
        rank, quota, score, chosen = (row[name] for name in ("rank_in_bin", "bin_quota", "score", "chosen"))
        if config.subset != "top":
            yield f"subset is {config.subset}: rows are taken from there, not by the highest score"
            return
        bins = table["bin"].to_numpy()
        mates = bins == row["bin"]
        scores, ranks = (table[name].to_numpy()[mates] for name in ("score", "rank_in_bin"))
        if row["reason"] == IN_QUOTA and quota < len(scores):
            first_left = float(scores[ranks == quota + 1][0])
            yield f"a score below {first_left:.4f} ({first_left - score:+.4f}) would have left it out"
        elif not chosen and quota:
            last_in = float(scores[ranks == quota][0])
            yield f"a score above {last_in:.4f} ({last_in - score:+.4f}) would have chosen it"
        if not chosen:
            enough = _enough(np.bincount(bins), row["bin"], rank)
            yield f"its bin gives {quota} of {len(scores)} rows; a budget of about {enough:,} would have reached it"
        for form, place in ranks_by_form(table, at, config).items():
            if (place <= quota) != chosen:
                yield f"score: {form} would have {'left it out' if chosen else 'chosen it'} (rank {place} in its bin)"


def ranks_by_form(table: pa.Table, at: int, config: ScoreSettings) -> dict[ScoreForm, int]:
    """Return the rank of row `at` in its bin under each other form of the score, with the settings' weight."""
    dispersion, anisotropy, bins = (table[name].to_numpy() for name in ("dispersion", "anisotropy", "bin"))
    ids = table["id"].to_pylist()
    mates = np.flatnonzero(bins == bins[at])
    earlier = np.array([ids[mate] < ids[at] for mate in mates])
    found: dict[ScoreForm, int] = {}
    for form in get_args(ScoreForm):
        if form != config.score:
            scores = combine(dispersion, anisotropy, form, config.weight)
            better = (scores[mates] > scores[at]) | ((scores[mates] == scores[at]) & earlier)
            found[form] = int(better.sum()) + 1
    return found


def _enough(sizes: npt.NDArray[np.intp], bin_: int, rank: int) -> int:
    """Return a budget under which the bin's quota reaches `rank`, the smallest but for largest-remainder paradoxes."""
    low, high = 1, int(sizes.sum())
    while low < high:
        middle = (low + high) // 2
        if allocate(sizes, middle)[bin_] >= rank:
            high = middle
        else:
            low = middle + 1
    return low
