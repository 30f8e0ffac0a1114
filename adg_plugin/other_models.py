"""Models beside the backbone, which a setting names: under which settings they are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adg_plugin.config import ADGConfig
from adg_plugin.errors import ModelError

if TYPE_CHECKING:
    from adg_plugin.engines.loading import Source


def other_model_settings(config: ADGConfig, key: str) -> ADGConfig:
    """Return the settings for the model that `key` names, such as `small_model`.

    A revision, a type and a token of the backbone mean nothing to another model, and whoever set `trust_remote_code`
    has read the backbone's code, not this one's.
    """
    changes: dict[str, Any] = {"model": getattr(config, key), "revision": None, "eos_token": None, "dtype": "auto"}
    return config.updated(**changes, load_in_4bit=False, trust_remote_code=False)


def other_model(config: ADGConfig, key: str) -> Source:
    """Return where the model that `key` names comes from, not loaded yet.

    Raises:
        ModelError: it cannot be found or read, or brings code of its own.
    """
    from adg_plugin.engines.loading import Source

    try:
        return Source.configured(other_model_settings(config, key))
    except ModelError as err:
        if "trust_remote_code" in str(err):
            raise ModelError(
                f"{key} is {getattr(config, key)!r}: it brings its own code, and trust_remote_code is about the "
                "backbone; name a model without"
            ) from err
        raise
