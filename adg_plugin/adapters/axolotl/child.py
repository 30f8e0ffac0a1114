"""`python -m adg_plugin.adapters.axolotl.child RUN_DIR FINGERPRINT`: sample and choose from a pool that is staged."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from adg_plugin.adapters.processes import follow, guarded, interruptible
from adg_plugin.config.schema import ADGConfig
from adg_plugin.pipeline.run import run_selection
from adg_plugin.pipeline.stage import Pool
from adg_plugin.report.page import offer_report
from adg_plugin.report.summary import print_summary
from adg_plugin.store import RunFolder


def select_staged(run_dir: Path, fingerprint: str) -> None:
    """Finish the selection in a run folder whose pool is staged under `fingerprint`."""
    config = ADGConfig.parse(RunFolder.read(run_dir).read_config()["config"])
    selection = run_selection(Pool((), fingerprint), config, run_dir)
    print_summary(selection.run_dir, Console(stderr=True))
    offer_report(selection.run_dir)


def main() -> None:
    """Select by the arguments of the command line."""
    interruptible()
    follow()
    select_staged(Path(sys.argv[1]), sys.argv[2])


if __name__ == "__main__":
    guarded(main)
