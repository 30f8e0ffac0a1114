"""Models other than the backbone, which a setting names: the settings they run under, and what errors call them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adg_plugin.config.groups import ModelSettings
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Backbone, Source

# What errors advise for the backbone, by settings that another model does not share, and what helps with that one.
_ADVICE = {
    "use load_in_4bit: true, dtype: bfloat16 or a smaller model, or free the device": "name a smaller model, or free "
    "the device",
    "upgrade it, or set trust_remote_code: true": "upgrade it, or name another model",
    "set eos_token, such as `</s>`": "name another model",
}


def other_model_settings(config: ADGConfig, key: str) -> ADGConfig:
    """Return the settings for the model that `key` names, such as `small_model`.

    A revision, a type and a token of the backbone mean nothing to another model, and whoever set `trust_remote_code`
    has read the backbone's code, not this one's.
    """
    changes: dict[str, Any] = {"model": getattr(config, key), "revision": None, "eos_token": None, "dtype": "auto"}
    return config.updated(**changes, load_in_4bit=False, trust_remote_code=False)


def other_model(config: ADGConfig, key: str) -> Source:
    """Return the model that `key` names, not loaded; a ModelError, also on loading, if missing or bringing code."""
    from adg_plugin.engines.models.loading import Source

    with errors_under(config, key):
        source = Source.configured(other_model_settings(config, key))

    def load() -> Backbone:
        with errors_under(config, key):
            return source.load()

    return replace(source, load=load)


@contextmanager
def errors_under(config: ModelSettings, key: str) -> Iterator[None]:
    """Turn errors about the model that `key` names, raised as about `model`, into ones with that key and its advice."""
    try:
        yield
    except (ModelError, MissingExtraError) as err:
        raise type(err)(_renamed(err, key, getattr(config, key))) from err


def _renamed(err: ModelError | MissingExtraError, key: str, name: str) -> str:
    if "trust_remote_code" in str(err.__cause__):
        return (
            f"{key} is {name!r}: it brings its own code, and trust_remote_code is about the backbone; name a model "
            "without"
        )
    text = str(err)
    for advice, instead in _ADVICE.items():
        text = text.replace(advice, instead)
    for start in ("model is ", "model: demo "):
        if text.startswith(start):  # others are about the device, which all models share
            return key + text.removeprefix("model").replace("or set model: ", f"or set {key}: ")
    if text.startswith(f"{name} names no "):
        return f"{key} is {name!r}: it{text.removeprefix(name)}"
    return text
