"""What of TRL is used that TRL does not promise, checked before it is relied on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from adg_plugin.errors import ADGError, need

OLDEST, NEWEST = "1.9", "1.16"
_PARAMETERS = ("self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name")


def trl() -> Any:
    """Return the module `trl`; a MissingExtraError without it, an ADGError where its private hook has changed."""
    module = need("trl", extra="trl", why="training")
    need("peft", extra="trl", why="training")
    check_hook(module.SFTTrainer, module.__version__)
    return module


def check_hook(trainer: type, version: str) -> None:
    """Raise an ADGError naming what changed where `_prepare_dataset` does not take the arguments it is given."""
    hook: Callable[..., Any] | None = getattr(trainer, "_prepare_dataset", None)
    found = () if hook is None else tuple(inspect.signature(hook).parameters)
    if found != _PARAMETERS:
        seen = "is gone" if hook is None else f"takes ({', '.join(found)}), expected ({', '.join(_PARAMETERS)})"
        raise ADGError(
            f"{trainer.__name__}._prepare_dataset of TRL {version} {seen}: without it nothing could be selected; "
            f"use TRL {OLDEST} to {NEWEST}, or a newer adg-plugin"
        )


def not_asked(version: str) -> ADGError:
    """Return the error for a TRL that prepares the training rows without `_prepare_dataset`."""
    return ADGError(
        f"SFTTrainer of TRL {version} did not prepare its training rows by _prepare_dataset, so every row would be "
        f"trained on: use TRL {OLDEST} to {NEWEST}, or a newer adg-plugin"
    )
