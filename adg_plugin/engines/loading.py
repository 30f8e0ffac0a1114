"""A configuration -> the backbone on its device, its tokenizer, and the tokens that end an answer."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from adg_plugin import demo
from adg_plugin.config import ADGConfig
from adg_plugin.engines.base import Engine
from adg_plugin.engines.embed import REFERENCE_LAYERS
from adg_plugin.engines.generate import GenerateEngine
from adg_plugin.engines.hf import OnePassEngine
from adg_plugin.engines.pooling import ReferencePooling
from adg_plugin.engines.probe import one_pass_problem
from adg_plugin.engines.states import last_layers
from adg_plugin.errors import ModelError, need

logger = logging.getLogger(__name__)

_SAMPLE_BYTES = 1 << 16  # of weights read at each of a few places, for the fingerprint


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model that is ready to be asked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]


def model_location(config: ADGConfig) -> str:
    """Return the folder or hub name of the config's model; `demo` is the built-in one.

    Raises:
        ModelError: no model is named.
    """
    if config.model is None:
        raise ModelError("model is missing: set it to the backbone that will be trained (a folder, a hub name, `demo`)")
    return str(demo.model_path()) if config.model == "demo" else config.model


def load_tokenizer(config: ADGConfig) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    location = model_location(config)
    try:
        return AutoTokenizer.from_pretrained(
            location, revision=config.revision or "main", trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as err:
        raise ModelError(_unreadable("tokenizer", location, err)) from err


def load_backbone(config: ADGConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Backbone:
    """Return the configured model in evaluation mode on its device, with its tokenizer.

    Raises:
        ModelError: the model cannot be found or read, is unknown to transformers, or names no end-of-answer token.
        MissingExtraError: 4-bit is asked for and bitsandbytes is not installed.
    """
    location = model_location(config)
    tokenizer = tokenizer or load_tokenizer(config)
    eos_ids = end_tokens(config, tokenizer, _own_generation_config(config))
    device = pick_device(config.device)
    options: dict[str, Any] = {"dtype": "auto" if config.dtype == "auto" else getattr(torch, config.dtype)}
    if config.load_in_4bit:
        options |= {"quantization_config": _four_bit(config), "device_map": {"": device}}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            location, revision=config.revision or "main", trust_remote_code=config.trust_remote_code, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as err:
        raise ModelError(_unreadable("model", location, err)) from err
    if not config.load_in_4bit:
        model.to(device)  # type: ignore[arg-type]  # a device, whatever the stub of the wrapped method says
    return Backbone(model.eval(), tokenizer, eos_ids)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a selection gets its model from.

    Attributes:
        tokenizer: of the model.
        eos_ids: tokens that end an answer.
        identity: what tells the model's weights from all others.
        load: returns the model; called only when there are rows to sample.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    identity: str
    load: Callable[[], Backbone]

    @classmethod
    def configured(cls, config: ADGConfig) -> Source:
        """Return the model that the config names, not loaded yet.

        Raises:
            ModelError: its tokenizer or weights cannot be found, or it names no end-of-answer token.
        """
        tokenizer = load_tokenizer(config)
        eos_ids = end_tokens(config, tokenizer, _own_generation_config(config))
        return cls(tokenizer, eos_ids, fingerprint(config), lambda: load_backbone(config, tokenizer))

    @classmethod
    def loaded(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ADGConfig) -> Source:
        """Return a model that is in memory already, such as a trainer's.

        Args:
            model: a causal language model of transformers; of a PEFT model, its base.
            tokenizer: of the model.
            config: for `eos_token`.

        Raises:
            ModelError: neither it nor its tokenizer names an end-of-answer token.
        """
        eos_ids = end_tokens(config, tokenizer, model.generation_config)
        return cls(tokenizer, eos_ids, weights_digest(model), lambda: Backbone(model, tokenizer, eos_ids))


def make_engine(backbone: Backbone, config: ADGConfig) -> Engine:
    """Return the engine for a loaded model: in one pass where the model allows it, else by generating and re-encoding.

    Raises:
        ModelError: `layers` asks for more hidden states than the model has.
    """
    model = backbone.model
    states = model.config.get_text_config().num_hidden_layers
    if config.layers > states or (config.pooling == "reference" and states < -min(REFERENCE_LAYERS)):
        raise ModelError(f"layers is {config.layers}: the model has {states} layers, use at most that")
    problem = one_pass_problem(model, last_layers(config.layers))
    engine: Engine
    if problem is None:
        engine = OnePassEngine(model, backbone.tokenizer, config, backbone.eos_ids)
    else:
        logger.warning(
            "%s cannot be run in one pass (%s): generating and re-encoding instead, which is slower",
            type(model).__name__,
            problem,
        )
        engine = GenerateEngine(model, backbone.tokenizer, config, backbone.eos_ids)
    return ReferencePooling(engine, backbone.model, backbone.tokenizer) if config.pooling == "reference" else engine


def end_tokens(config: ADGConfig, tokenizer: PreTrainedTokenizerBase, own: GenerationConfig | None) -> tuple[int, ...]:
    """Return the ids that end an answer: those of the generation config, of the tokenizer, and `eos_token`.

    Args:
        own: the model's generation config, if it has one; nothing else is taken from it.

    Raises:
        ModelError: there is none, or `eos_token` is not one token.
    """
    found: set[int] = set()
    if config.eos_token is not None:
        ids = tokenizer.encode(config.eos_token, add_special_tokens=False)
        if len(ids) != 1:
            raise ModelError(f"eos_token is {config.eos_token!r}: it is {len(ids)} tokens, name a single one")
        found.add(ids[0])
    if tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    named = None if own is None else own.eos_token_id
    found.update(named if isinstance(named, Sequence) else [] if named is None else [int(named)])
    if not found:
        raise ModelError(f"{config.model or 'the model'} names no end-of-answer token: set eos_token, such as `</s>`")
    return tuple(sorted(found))


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the accelerator, where there is one.

    Raises:
        ModelError: it is not there.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as err:
        raise ModelError(f"device is {name!r}: not available here ({err}); use auto or cpu") from None
    return torch.device(name)


def fingerprint(config: ADGConfig) -> str:
    """Return what tells this model's weights from all others: a commit of the hub, or a digest of a folder.

    The digest covers the folder's config and, of each weight file, name, size, header and samples of its bytes.

    Raises:
        ModelError: the model cannot be found.
    """
    location = model_location(config)
    if not Path(location).is_dir():
        try:
            found = cached_file(location, "config.json", revision=config.revision or "main")
        except (OSError, ValueError) as err:
            raise ModelError(_unreadable("model", location, err)) from err
        assert found is not None
        return f"{location}@{Path(found).parent.name}"
    digest = hashlib.blake2b(digest_size=16)
    folder = Path(location)
    weights = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".gguf", ".pt", ".pth"))
    for path in [folder / "config.json", *weights]:
        if path.is_file():
            _sample_file(digest, path)
    return digest.hexdigest()


@torch.no_grad()
def weights_digest(model: PreTrainedModel) -> str:
    """Return a digest of a model in memory: names, types, shapes and samples of its weights, adapters left out."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 256)].float().cpu().numpy()
        shape = name.replace(".base_layer", ""), str(weight.dtype), list(weight.shape)
        digest.update(json.dumps(shape).encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()


def _own_generation_config(config: ADGConfig) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(model_location(config), revision=config.revision or "main")
    except OSError:  # the model has none
        return None


def _sample_file(digest: hashlib.blake2b, path: Path) -> None:
    size = path.stat().st_size
    digest.update(json.dumps([path.name, size]).encode())
    with path.open("rb") as file:
        for place in range(16):
            file.seek(place * max(0, size - _SAMPLE_BYTES) // 15)
            digest.update(file.read(_SAMPLE_BYTES))


def _four_bit(config: ADGConfig) -> Any:
    need("bitsandbytes", extra="quant", why="load_in_4bit")
    need("accelerate", extra="quant", why="load_in_4bit")
    from transformers import BitsAndBytesConfig

    compute = config.bnb_4bit_compute_dtype
    if compute == "auto":
        compute = "bfloat16" if config.dtype == "auto" else config.dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, compute),
    )


def _unreadable(what: str, location: str, err: Exception) -> str:
    first = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
    if not Path(location).exists():
        fix = "check the name; it is no folder here, so the hub was asked"
    elif "model type" in str(err) or "Unrecognized" in str(err):
        fix = "this transformers does not know the architecture: upgrade it, or set trust_remote_code: true"
    else:
        fix = "give a folder that save_pretrained wrote, or a hub name"
    return f"model is {location!r}: its {what} cannot be loaded ({first}): {fix}"
