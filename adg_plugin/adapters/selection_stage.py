"""`python -m adg_plugin.adapters.selection_stage CONFIG.json RUN_DIR`: the selection of `adg run`, by itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from adg_plugin.adapters.stages import follow, guarded, interruptible
from adg_plugin.config import ADGConfig
from adg_plugin.pipeline import run_selection
from adg_plugin.pool import Pool
from adg_plugin.summary import print_summary


def main() -> None:
    """Select into the run folder, which must not hold answers of another model or other settings."""
    interruptible()
    follow()
    config = ADGConfig.parse(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    selection = run_selection(Pool.of(config, for_training=True), config, Path(sys.argv[2]), own=True)
    print_summary(selection.run_dir, Console(stderr=True))


if __name__ == "__main__":
    guarded(main)
