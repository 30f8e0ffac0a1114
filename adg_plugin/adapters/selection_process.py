"""A selection in a process of its own, which leaves memory and accelerator as they were.

    python -m adg_plugin.adapters.selection_process CONFIG.json RUN_DIR [MODEL REVISION]
    python -m adg_plugin.adapters.selection_process --staged RUN_DIR FINGERPRINT

The first is that of `adg run`; MODEL is the one that will be trained, where another one is asked. The second finishes a
run folder in which Axolotl's rows are staged.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from adg_plugin.adapters.processes import follow, guarded
from adg_plugin.adapters.secrets import taken_over
from adg_plugin.config.schema import ADGConfig
from adg_plugin.console import message_console
from adg_plugin.engines.models.loading import load_tokenizer
from adg_plugin.pipeline.run import Selection, run_selection
from adg_plugin.pipeline.stage import Pool
from adg_plugin.pipeline.training_rows import write_training_rows
from adg_plugin.report.page import offer_report
from adg_plugin.report.summary import print_summary
from adg_plugin.store import RunFolder


def main() -> None:
    """Select, and print the summary on stderr."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that what is buffered is written
    follow()
    if sys.argv[1] == "--staged":
        selection = select_staged(Path(sys.argv[2]), sys.argv[3])
    else:
        selection = _select(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    print_summary(selection.run_dir, message_console())
    offer_report(selection.run_dir)


def _select(settings: Path, run_dir: Path, trained: list[str]) -> Selection:
    """Select into the run folder, which must not hold answers of another model or other settings."""
    config = ADGConfig.parse({**json.loads(settings.read_text(encoding="utf-8")), **taken_over()})
    selection = run_selection(Pool.of(config, for_training=True), config, run_dir, own=True)
    if trained:
        of_trained = config.updated(model=trained[0], revision=trained[1])
        write_training_rows(RunFolder.read(selection.run_dir), selection.ids, load_tokenizer(of_trained), config)
    return selection


def select_staged(run_dir: Path, fingerprint: str) -> Selection:
    """Finish the selection in a run folder whose pool is staged under `fingerprint`, and return it."""
    config = ADGConfig.parse(RunFolder.read(run_dir).read_config()["config"])
    return run_selection(Pool((), fingerprint), config, run_dir)


if __name__ == "__main__":
    guarded(main)
