"""`python -m adg_plugin.adapters.selection_process CONFIG.json RUN_DIR [MODEL REVISION]`: the selection of `adg run`.

MODEL is the one that will be trained, where another one is asked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from adg_plugin.adapters.processes import follow, guarded, interruptible
from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models.loading import load_tokenizer
from adg_plugin.pipeline.run import run_selection
from adg_plugin.pipeline.stage import Pool
from adg_plugin.pipeline.training_rows import write_training_rows
from adg_plugin.report.page import offer_report
from adg_plugin.report.summary import print_summary
from adg_plugin.store import RunFolder


def main() -> None:
    """Select into the run folder, which must not hold answers of another model or other settings."""
    interruptible()
    follow()
    config = ADGConfig.parse(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    selection = run_selection(Pool.of(config, for_training=True), config, Path(sys.argv[2]), own=True)
    if trained := sys.argv[3:]:
        of_trained = config.updated(model=trained[0], revision=trained[1])
        write_training_rows(RunFolder.read(selection.run_dir), selection.ids, load_tokenizer(of_trained), config)
    print_summary(selection.run_dir, Console(stderr=True))
    offer_report(selection.run_dir)


if __name__ == "__main__":
    guarded(main)
