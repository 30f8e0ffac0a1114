"""ADGPlugin: an `adg:` block in an Axolotl YAML selects the training rows. Axolotl imports it by name."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from axolotl.integrations.base import BasePlugin

from adg_plugin.adapters.axolotl.args import adopt_pool, check_supported
from adg_plugin.adapters.secrets import taken_over


class ADGPlugin(BasePlugin):  # type: ignore[misc]  # untyped where Axolotl is not installed
    """Keeps of the training rows those that ADG selects."""

    def register(self, cfg: MutableMapping[str, Any]) -> None:
        """Move `adg.datasets` to where Axolotl looks for the pool; a ConfigError names every setting in the way."""
        cfg.update(taken_over())  # what `adg run` leaves out of the file that it writes
        check_supported(cfg)
        adopt_pool(cfg)

    def get_input_args(self) -> str:
        """Return the name of the schema of the `adg:` block."""
        return "adg_plugin.adapters.axolotl.args.ADGArgs"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """Return Axolotl's data sets with the selected training rows only; `preprocess` needs no number of steps."""
        from adg_plugin.adapters.axolotl import internals, select

        meta = internals.load_rows(cfg)
        keep, run_dirs = select.selected_positions(cfg, meta.train_dataset)
        where = ", ".join(map(str, run_dirs))
        select.logger.info("ADG keeps %d of %d training rows; why is in %s", len(keep), len(meta.train_dataset), where)
        return internals.with_rows(cfg, meta, keep, count_steps=not preprocess)
