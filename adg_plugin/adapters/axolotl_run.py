"""`adg run` on an Axolotl YAML: preprocess, which selects, and train, as a user would run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adg_plugin.adapters.stages import run_stage
from adg_plugin.errors import need


def is_axolotl(data: Mapping[str, Any]) -> bool:
    """Return whether a YAML is Axolotl's: it names its model `base_model`, which no other accepted YAML does."""
    return "base_model" in data


def run_axolotl(config: Path, train_arguments: Sequence[str] = ()) -> None:
    """Run `axolotl preprocess` and `axolotl train` on a YAML.

    Args:
        config: the YAML, with the plugin and an `adg:` block.
        train_arguments: passed on to `axolotl train`, such as `--launcher python`.

    Raises:
        MissingExtraError: Axolotl is not installed here.
        StageError: one of them failed; it has printed why.
    """
    need("axolotl", extra="axolotl", why="adg run on an Axolotl YAML")
    command = ["-m", "axolotl.cli.main"]
    run_stage("axolotl preprocess", [*command, "preprocess", str(config)])
    run_stage("axolotl train", [*command, "train", str(config), *train_arguments])
