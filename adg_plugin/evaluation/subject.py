"""A folder, a hub name or a loaded model -> what is evaluated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adg_plugin.config import ADGConfig
from adg_plugin.errors import ModelError, OutOfMemoryError, need

_ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is ready to be evaluated.

    Attributes:
        model: of transformers, or wrapped by PEFT.
        tokenizer: of the model.
        about: name, base, adapter, digest of the weights, dtype, device; for the results.
    """

    model: Any
    tokenizer: Any
    about: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is.

    Attributes:
        name: as the user gave it.
        base: folder or hub name of the model itself.
        adapter: folder or hub name of a LoRA adapter on it, or None.
    """

    name: str
    base: str
    adapter: str | None

    @classmethod
    def of(cls, name: str, base: str | None = None) -> Place:
        """Return where the model of that name is, without loading it.

        Args:
            name: a folder, a hub name, or `demo`; of a model or of an adapter.
            base: the adapter's base, in the place of the one that it names.

        Raises:
            ModelError: the adapter does not name its base, or `base` is given for what is no adapter.
        """
        found = _adapter_config(name)
        if found is None:
            if base is not None:
                raise ModelError(f"base is {base!r}, and {name!r} is no adapter (no {_ADAPTER}): leave base out")
            return cls(name, name, None)
        base = base or found.get("base_model_name_or_path")
        if not base:
            raise ModelError(
                f"adapter {name!r} does not name its base model (base_model_name_or_path): give it with --base"
            )
        return cls(name, str(base), name)

    def load(self, config: ADGConfig) -> Subject:
        """Return the model on its device, in evaluation mode.

        Args:
            config: dtype, device, quantisation; its `model` is not looked at.

        Raises:
            ModelError: the model, its tokenizer or the adapter cannot be loaded.
            MissingExtraError: 4-bit or an adapter is asked for and its package is not installed.
        """
        from adg_plugin.engines.loading import load_backbone, load_tokenizer
        from adg_plugin.engines.weights import fingerprint

        config = config.model_copy(update={"model": self.base})
        own = self.adapter is not None and (Path(self.adapter) / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(config.model_copy(update={"model": self.adapter})) if own else None
        backbone = load_backbone(config, tokenizer)
        model: Any = backbone.model
        about = {
            "name": self.name,
            "base": self.base,
            "adapter": self.adapter,
            "weights": fingerprint(config),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "load_in_4bit": config.load_in_4bit,
        }
        if self.adapter is not None:
            model = self._with_adapter(model)
            about["adapter_weights"] = _digest(self.adapter, config)
        return Subject(model.eval(), backbone.tokenizer, about)

    def _with_adapter(self, model: Any) -> Any:
        peft = need("peft", extra="eval", why="a LoRA adapter")
        try:
            return peft.PeftModel.from_pretrained(model, self.adapter)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError) as err:
            first = (str(err).strip() or type(err).__name__).splitlines()[0]
            raise ModelError(
                f"adapter {self.adapter!r} does not go with {self.base!r} ({first}): name the base that it was "
                "trained on with --base"
            ) from err


def loaded(model: Any, tokenizer: Any, name: str | None) -> Subject:
    """Return a model that is in memory already.

    Raises:
        ModelError: its tokenizer is not given.
    """
    from adg_plugin.engines.weights import weights_digest

    if tokenizer is None:
        raise ModelError("tokenizer is missing: evaluate() needs it with a model that is loaded already")
    about = {
        "name": name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
        "base": None,
        "adapter": None,
        "weights": weights_digest(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "load_in_4bit": bool(getattr(model, "is_loaded_in_4bit", False)),
    }
    return Subject(model, tokenizer, about)


def _adapter_config(name: str) -> dict[str, Any] | None:
    """Return what an adapter's config says, or None for a model."""
    if name == "demo":
        return None
    path: str | None = str(Path(name) / _ADAPTER)
    if not Path(name).is_dir():
        from transformers.utils.peft_utils import find_adapter_config_file

        try:
            path = find_adapter_config_file(name)
        except (OSError, ValueError):  # no such repository, or no network: the model's own loading says so
            path = None
    if path is None or not Path(path).is_file():
        return None
    try:
        found = json.loads(Path(path).read_bytes())
    except ValueError as err:
        raise ModelError(f"{path} is not JSON ({err}): give an adapter's folder that save_pretrained wrote") from None
    return found if isinstance(found, dict) else {}


def _digest(adapter: str, config: ADGConfig) -> str:
    """Return what tells an adapter's weights from others: the digest of its folder, or its name on the hub."""
    from adg_plugin.engines.weights import fingerprint

    return fingerprint(config.model_copy(update={"model": adapter})) if Path(adapter).is_dir() else adapter


def no_room(batch_size: int) -> OutOfMemoryError:
    """Return the error to raise where a batch does not fit into memory."""
    fix = "give a smaller --batch-size" if batch_size > 1 else "use --4bit, --dtype bfloat16 or a smaller model"
    return OutOfMemoryError(f"a batch of {batch_size} questions does not fit into memory: {fix}")
