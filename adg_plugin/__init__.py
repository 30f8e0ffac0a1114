"""Choose which instruction rows to train on, before SFT, by asking the model that will be trained.

The public names are imported when they are first used, so that importing the package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adg_plugin.config import ADGConfig as ADGConfig
    from adg_plugin.config import load_config as load_config
    from adg_plugin.errors import ADGError as ADGError
    from adg_plugin.pipeline import Selection as Selection
    from adg_plugin.pipeline import select as select

__version__ = "0.1.0"

_HOMES = {
    "ADGConfig": "adg_plugin.config",
    "load_config": "adg_plugin.config",
    "ADGError": "adg_plugin.errors",
    "Selection": "adg_plugin.pipeline",
    "select": "adg_plugin.pipeline",
}

__all__ = ["ADGConfig", "ADGError", "Selection", "load_config", "select"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
