"""ZIP over a run folder: instructions and reference responses -> the rows that together compress worst."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from adg_plugin.console import SamplingProgress
from adg_plugin.selectors.base import Selector, Task
from adg_plugin.selectors.candidates import Candidates, Picked
from adg_plugin.selectors.zip.checkpoint import kept_steps
from adg_plugin.selectors.zip.greedy import Steps, zip_order
from adg_plugin.store.reader import MEASURES


class ZIP(Selector):
    """The set that compresses worst; see `zip_order`. Source: arXiv 2407.06645."""

    reads = ("instruction", "reference")
    stepwise = True
    score_meaning = "place in the choice, counted from its end"
    part_meanings: ClassVar[Mapping[str, str]] = {
        "set_compression_ratio": "compression ratio of the choice, up to the row's step"
    }

    def pick(self, rows: Candidates, budget: int, task: Task) -> Picked:
        """Return the choice; whole steps are kept to resume from under any budget, or a StoreError is raised."""
        pairs = zip(rows.instructions, rows.references, strict=True)
        texts = [f"{asked}\n{answer}".encode() for asked, answer in pairs]
        wanted = min(budget, len(texts))
        with kept_steps(task.run.path / MEASURES / self.name, texts) as kept:
            done = 0 if kept.begun is None else min(wanted, len(kept.begun.order))
            with SamplingProgress(wanted, done, verb="choosing", show=task.show) as progress:

                def chosen(count: int) -> None:
                    for _ in range(count - progress.done):
                        progress.add(0, rejected=False)

                def advance(steps: Steps) -> None:
                    chosen(len(steps.order))
                    kept.add(steps)

                order, ratios = zip_order(texts, budget, begun=kept.begun, advance=advance)
                chosen(len(order))
        return Picked.stepwise(order, len(texts), {"set_compression_ratio": ratios})
