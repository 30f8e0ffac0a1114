"""Where the configured model is, and what to say where it cannot be read."""

from __future__ import annotations

from pathlib import Path

from adg_plugin import demo
from adg_plugin.config.groups import ModelSettings
from adg_plugin.errors import ModelError, first_line


def model_location(config: ModelSettings) -> str:
    """Return folder or hub name of the config's model (`demo`: the built-in one); a ModelError where none is named."""
    if config.model is None:
        raise ModelError("model is missing: set it to the backbone that will be trained (a folder, a hub name, `demo`)")
    return str(demo.model_path()) if config.model == "demo" else config.model


def unreadable(what: str, location: str, err: Exception) -> ModelError:
    """Return the error to raise for a model whose `what` (`model`, `tokenizer`, `config`) transformers cannot load."""
    fix = _fix(location, str(err))
    return ModelError(f"model is {location!r}: its {what} cannot be loaded ({first_line(err)}): {fix}")


def _fix(location: str, text: str) -> str:
    if not Path(location).exists():
        return "check the name; it is no folder here, so it was looked for on the hub"
    if "trust_remote_code" in text:
        return "it brings its own code; read it, and set trust_remote_code: true"
    if Path(location).is_dir() and not (Path(location) / "config.json").exists():
        return "the folder has no config.json; give one that save_pretrained wrote, or a hub name"
    if "model type" in text or "Unrecognized" in text:
        return "this transformers does not know the architecture: upgrade it, or set trust_remote_code: true"
    return "give a folder that save_pretrained wrote, or a hub name"
