"""A configuration -> the backbone on its device, its tokenizer, and the tokens that end an answer."""

from __future__ import annotations

import pickle  # noqa: TID251  # its error only
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adg_plugin.config.groups import ModelSettings
from adg_plugin.config.methods import samples
from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward.memory import is_out_of_memory
from adg_plugin.engines.models.device import warn_of_cpu
from adg_plugin.engines.models.fingerprint import fingerprint, weights_digest
from adg_plugin.engines.models.location import model_location, unreadable
from adg_plugin.errors import ConfigError, ModelError, first_line, need

# What transformers raises for files that are missing, damaged, of another model, or of code that is not there.
LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model that is ready to be asked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]


def load_tokenizer(config: ModelSettings) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer; a ModelError where there is none, or it cannot be read."""
    tokenizer: PreTrainedTokenizerBase = _from_pretrained(AutoTokenizer, "tokenizer", config)
    return tokenizer


def load_backbone(config: ADGConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Backbone:
    """Return the configured model in evaluation mode on its device, with its tokenizer.

    Raises:
        ModelError: the model cannot be found or read, is unknown to transformers, lacks weights, does not fit into
            memory, or names no end-of-answer token.
        MissingExtraError: 4-bit is asked for and bitsandbytes is not installed.
    """
    tokenizer = tokenizer or load_tokenizer(config)
    eos_ids = end_tokens(config, tokenizer, _own_generation_config(config))
    device = pick_device(config.device)
    options: dict[str, Any] = {"dtype": "auto" if config.dtype == "auto" else getattr(torch, config.dtype)}
    if config.load_in_4bit:
        options |= {"quantization_config": _four_bit(config), "device_map": {"": device}}
    try:
        model, found = _from_pretrained(AutoModelForCausalLM, "model", config, output_loading_info=True, **options)
        if keys := found["missing_keys"]:  # filled in at random, with a warning
            raise ModelError(
                f"model is {model_location(config)!r}: its weights do not fit its config ({len(keys)} are missing, "
                f"such as {min(keys)}): give a folder that save_pretrained wrote, or a hub name"
            )
        if not config.load_in_4bit:
            model.to(device)
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        fix = "use load_in_4bit: true, dtype: bfloat16 or a smaller model, or free the device"
        raise ModelError(f"model is {model_location(config)!r}: {device} has no room for its weights: {fix}") from err
    return Backbone(model.eval(), tokenizer, eos_ids)


def _from_pretrained(auto: Any, what: str, config: ModelSettings, **options: Any) -> Any:
    location = model_location(config)
    revision = config.revision or "main"
    try:
        return auto.from_pretrained(location, revision=revision, trust_remote_code=config.trust_remote_code, **options)
    except LOADING_ERRORS as err:
        if is_out_of_memory(err):
            raise
        raise unreadable(what, location, err) from err


@dataclass(frozen=True, slots=True)
class Source:
    """Where a selection gets its model from.

    Attributes:
        eos_ids: tokens that end an answer.
        identity: what tells the model's weights from all others.
        positions: tokens that the model can tell apart by position, prompt and answer together; None where it sets no
            limit.
        vocabulary: how many tokens the model has embeddings for; None where its config does not say.
        stored_dtype: what the checkpoint's weights are, as torch names it; None where it does not say.
        load: returns the model; called only when there are rows to sample.
        in_memory: whether it is loaded already, so that settings of loading do not apply.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    identity: str
    positions: int | None
    load: Callable[[], Backbone]
    stored_dtype: str | None = None
    in_memory: bool = False
    vocabulary: int | None = None

    def dtype(self, config: ModelSettings) -> str:
        """Return the weights' type, as torch names it; a ModelError where neither config nor checkpoint says."""
        if config.dtype != "auto":
            return str(config.dtype)
        if self.stored_dtype is None:
            raise ModelError(f"dtype is 'auto': model {config.model!r} does not name its own; set it, such as bfloat16")
        return self.stored_dtype

    @classmethod
    def configured(cls, config: ADGConfig) -> Source:
        """Return the config's model, not loaded yet; a ModelError if not found or without an end-of-answer token."""
        tokenizer = load_tokenizer(config)
        eos_ids = end_tokens(config, tokenizer, _own_generation_config(config))
        about = _from_pretrained(AutoConfig, "config", config)
        _refuse_more_than_all_tokens(config, about)
        stored = getattr(about.get_text_config(), "dtype", None) or getattr(about, "dtype", None)
        return cls(
            tokenizer,
            eos_ids,
            fingerprint(config),
            max_positions(about),
            lambda: load_backbone(config, tokenizer),
            None if stored is None else str(stored).removeprefix("torch."),
            vocabulary=getattr(about.get_text_config(), "vocab_size", None),
        )

    @classmethod
    def loaded(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: ADGConfig,
        *,
        asked: bool = True,
    ) -> Source:
        """Return a model that is in memory already, such as a trainer's.

        Args:
            model: a causal language model of transformers; of a PEFT model, its base.
            config: for `eos_token`.
            asked: whether the model is to be asked anything.

        Raises:
            ModelError: neither it nor its tokenizer names an end-of-answer token, or it is to be asked and is spread
                over several devices.
        """
        if asked:
            _refuse_spread(model)
        _refuse_more_than_all_tokens(config, model.config)
        eos_ids = end_tokens(config, tokenizer, model.generation_config)
        backbone = Backbone(model, tokenizer, eos_ids)
        return cls(
            tokenizer,
            eos_ids,
            weights_digest(model),
            max_positions(model.config),
            lambda: backbone,
            in_memory=True,
            vocabulary=embedding_rows(model),
        )


def _refuse_spread(model: PreTrainedModel) -> None:
    """Raise where a model in memory is in pieces: it would sample one row at a time."""
    devices = {str(device) for device in getattr(model, "hf_device_map", {}).values()}
    if len(devices) < 2:
        devices = {str(weight.device) for weight in model.parameters()}
    if len(devices) > 1 or "meta" in devices:  # on meta: what accelerate has put into memory or on disk
        raise ModelError(
            f"the model is spread over {', '.join(sorted(devices))}, as device_map='auto' does, and in pieces it "
            "cannot sample: load it on one device (device_map={'': 0}, a trainer's model_init_kwargs={'device_map': "
            "{'': 0}}; in 4-bit where it does not fit) and start one process for each GPU (accelerate launch), or "
            "select first with `adg run`"
        )


def _refuse_more_than_all_tokens(config: ADGConfig, about: PreTrainedConfig) -> None:
    vocabulary = getattr(about.get_text_config(), "vocab_size", None)
    sampled = samples(config.method) and config.answers is None
    if sampled and vocabulary is not None and config.top_k > vocabulary:
        raise ConfigError([f"top_k is {config.top_k}: the model has {vocabulary} tokens; use fewer, or 0 for all"])


def embedding_rows(model: PreTrainedModel) -> int:
    """Return how many tokens a model has embeddings for."""
    weight: Any = model.get_input_embeddings().weight
    return int(weight.shape[0])


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a model of this configuration can take, or None where it sets no limit."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if positions is None else int(positions)


def end_tokens(
    config: ModelSettings, tokenizer: PreTrainedTokenizerBase, own: GenerationConfig | None
) -> tuple[int, ...]:
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
    """Return the device of that name, for `auto` the accelerator if there is one; a ModelError if it is missing."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is None:
            warn_of_cpu()
        return accelerator or torch.device("cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as err:
        raise ModelError(f"device is {name!r}: not available here ({first_line(err)}); use auto or cpu") from None
    return torch.device(name)


def _own_generation_config(config: ModelSettings) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(model_location(config), revision=config.revision or "main")
    except (OSError, TypeError) as err:
        if isinstance(err, TypeError) or isinstance(err.__context__, ValueError):  # not JSON, or no object
            raise ModelError(
                f"model is {model_location(config)!r}: its generation_config.json cannot be read ({first_line(err)}): "
                "mend it, or delete it"
            ) from None
        # The model has none: transformers takes what its config says.
        return GenerationConfig.from_model_config(_from_pretrained(AutoConfig, "config", config))


def need_quantization() -> None:
    """Import what 4-bit weights need; a MissingExtraError where it is not installed."""
    for module in ("bitsandbytes", "accelerate"):
        need(module, extra="quant", why="load_in_4bit")


def _four_bit(config: ModelSettings) -> Any:
    need_quantization()
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
