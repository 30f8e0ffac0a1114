"""A folder, a hub name or a loaded model -> what is evaluated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ModelError, need
from adg_plugin.store.files import digest_bytes

_ADAPTER, _TOKENIZER = "adapter_config.json", "tokenizer_config.json"
# A model of transformers, or wrapped by PEFT; its tokenizer; and for the results, its name, base, the base's revision,
# adapter, digest of the weights, dtype, device.
Evaluated = tuple[Any, Any, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is.

    Attributes:
        name: as the user gave it.
        base: folder or hub name of the model itself.
        adapter: folder or hub name of a LoRA adapter on it, or None.
        revision: of the base on the hub; None: the newest.
        config: the adapter's adapter_config.json, or None.
    """

    name: str
    base: str
    adapter: str | None
    revision: str | None = None
    config: Path | None = None

    @classmethod
    def of(cls, name: str, base: str | None = None, revision: str | None = None) -> Place:
        """Return where the model of that name is, without loading it.

        Args:
            name: a folder, a hub name, or `demo`; of a model or of an adapter.
            base: the adapter's base, in the place of the one that it names.
            revision: of the model, or of the adapter's base, in the place of the one that the adapter names.

        Raises:
            ModelError: the adapter does not name its base, or `base` is given for what is no adapter.
        """
        from transformers.utils.peft_utils import find_adapter_config_file

        try:
            config = None if name == "demo" else find_adapter_config_file(name)
        except (OSError, ValueError):  # no such repository, or no network: the model's own loading says so
            config = None
        if config is None:
            if base is not None:
                raise ModelError(f"base is {base!r}, and {name!r} is no adapter (no {_ADAPTER}): leave base out")
            return cls(name, name, None, revision)
        try:
            found = json.loads(Path(config).read_bytes())
        except ValueError as err:
            fix = "give an adapter's folder that save_pretrained wrote"
            raise ModelError(f"{config} is not JSON ({err}): {fix}") from None
        about = found if isinstance(found, dict) else {}
        named = about.get("base_model_name_or_path")
        if not (base or named):
            raise ModelError(
                f"adapter {name!r} does not name its base model (base_model_name_or_path): give it with --base"
            )
        if base in (None, named):  # else it is the revision of another repository
            revision = revision or about.get("revision")
        return cls(name, str(base or named), name, revision, Path(config))

    def load(self, config: ADGConfig) -> Evaluated:
        """Return the model on its device, in evaluation mode.

        Args:
            config: dtype, device, quantisation; its `model` is not looked at.

        Raises:
            ModelError: the model, its tokenizer or the adapter cannot be loaded.
            MissingExtraError: 4-bit or an adapter is asked for and its package is not installed.
        """
        from transformers.utils.hub import cached_file

        from adg_plugin.engines.models.fingerprint import fingerprint
        from adg_plugin.engines.models.loading import load_backbone, load_tokenizer

        config = config.model_copy(update={"model": self.base, "revision": self.revision})
        of_adapter = config.model_copy(update={"model": self.adapter, "revision": None})
        quietly = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        brings_one = self.adapter is not None and cached_file(self.adapter, _TOKENIZER, **quietly) is not None
        tokenizer = load_tokenizer(of_adapter) if brings_one else None
        backbone = load_backbone(config, tokenizer)
        model: Any = backbone.model
        known = {"name": self.name, "base": self.base, "revision": self.revision, "adapter": self.adapter}
        about = {**known, "weights": fingerprint(config), **_precision(model, config.load_in_4bit)}
        if self.config is not None:
            if tokenizer is not None and len(tokenizer) > len(model.get_input_embeddings().weight):
                # An embedding for each of the tokens that were added for the training; the adapter fills them.
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            peft = need("peft", extra="eval", why="a LoRA adapter")
            try:
                model = peft.PeftModel.from_pretrained(model, self.adapter)
            except (OSError, ValueError, KeyError, RuntimeError, TypeError) as err:
                fix = "name the base that it was trained on with --base"
                if isinstance(err, OSError):
                    fix = "give a folder that save_pretrained wrote, or a hub name"
                raise ModelError(
                    f"adapter {self.adapter!r} does not go with {self.base!r} ({_cause(err)}): {fix}"
                ) from err
            if Path(str(self.adapter)).is_dir():
                about["adapter_weights"] = digest_bytes(fingerprint(of_adapter).encode() + self.config.read_bytes())
            else:
                about["adapter_weights"] = f"{self.adapter}@{self.config.parent.name}"  # its commit on the hub
        return model.eval(), backbone.tokenizer, about


def _cause(err: Exception) -> str:
    """Return the first line of an error that says what was wrong: of torch's, the one below its heading."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return lines[1]
    return lines[0] if lines else type(err).__name__


def loaded(model: Any, tokenizer: Any, name: str | None) -> Evaluated:
    """Return a model that is in memory already.

    Raises:
        ModelError: its tokenizer is not given.
    """
    from adg_plugin.engines.models.fingerprint import weights_digest

    if tokenizer is None:
        raise ModelError("tokenizer is missing: evaluate() needs it with a model that is loaded already")
    name = name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    known = {"name": name, "base": None, "adapter": None, "weights": weights_digest(model)}
    about = {**known, **_precision(model, bool(getattr(model, "is_loaded_in_4bit", False)))}
    return model, tokenizer, about


def _precision(model: Any, load_in_4bit: bool) -> dict[str, Any]:
    dtype, device = str(model.dtype).removeprefix("torch."), str(model.device)
    return {"dtype": dtype, "device": device, "load_in_4bit": load_in_4bit}
