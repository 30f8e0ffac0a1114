"""A trainer on rows that were chosen before: nothing is selected, the chosen ids go into every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adg_plugin.adapters.trl.choice import ChosenIds, KeepChosenIds, prepared_counts
from adg_plugin.adapters.trl.contract import trl


class FinishedTrainer(trl().SFTTrainer):  # type: ignore[misc]  # the module is checked before it is used
    """`SFTTrainer` on rows of a finished run folder: `chosen` are their ids, `pool_rows` counts the pool."""

    def __init__(self, *, chosen: ChosenIds, pool_rows: int, **keywords: Any) -> None:
        super().__init__(**keywords)
        output_dir = Path(self.args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        if self.args.should_save:
            chosen.write(output_dir)
        self.add_callback(KeepChosenIds(chosen))
        counts = prepared_counts(len(chosen.ids), self.train_dataset, self.args)
        self.selection_counts = {"pool": pool_rows, **counts}
