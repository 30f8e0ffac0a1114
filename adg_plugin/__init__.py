"""Choose which instruction rows to train on, before SFT, by asking the model that will be trained.

The public names are imported when they are first used, so that importing the package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adg_plugin.adapters.axolotl.plugin import ADGPlugin as ADGPlugin
    from adg_plugin.adapters.trl.trainer import ADGSelectionCallback as ADGSelectionCallback
    from adg_plugin.adapters.trl.trainer import ADGSFTTrainer as ADGSFTTrainer
    from adg_plugin.config.schema import ADGConfig as ADGConfig
    from adg_plugin.config.schema import load_config as load_config
    from adg_plugin.pipeline.in_memory import select_dataset as select_dataset
    from adg_plugin.pipeline.run import Selection as Selection
    from adg_plugin.pipeline.run import select as select

from adg_plugin.errors import ADGError as ADGError
from adg_plugin.errors import need
from adg_plugin.version import __version__ as __version__

_HOMES = {
    "ADGPlugin": "adg_plugin.adapters.axolotl.plugin",
    "ADGSFTTrainer": "adg_plugin.adapters.trl.trainer",
    "ADGSelectionCallback": "adg_plugin.adapters.trl.trainer",
    "ADGConfig": "adg_plugin.config.schema",
    "load_config": "adg_plugin.config.schema",
    "Selection": "adg_plugin.pipeline.run",
    "select": "adg_plugin.pipeline.run",
    "select_dataset": "adg_plugin.pipeline.in_memory",
}

__all__ = ["ADGConfig", "ADGError", "Selection", "load_config", "select", "select_dataset"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "ADGPlugin":
        need("axolotl", extra="axolotl", why=name)
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ImportError as err:
        if name != "ADGPlugin":
            raise
        # What stops Axolotl: after an ImportError it would train on every row.
        raise ADGError(f"adg_plugin.ADGPlugin cannot be loaded, so nothing is trained: {err}") from err


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
