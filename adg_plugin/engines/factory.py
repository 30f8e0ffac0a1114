"""A configuration and a model -> what samples, what embeds, or both in one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager

from transformers import PreTrainedModel

from adg_plugin.config.groups import VectorSettings
from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.base import Encoder, Engine, GivenAnswers, Sampler
from adg_plugin.engines.encode.embed import (
    REFERENCE_LAYERS,
    REFERENCE_TOKENS,
    ReferenceEncoder,
    ReferencePooling,
    RepeatingEncoder,
)
from adg_plugin.engines.encode.shared_prompt import SharedPromptEncoder
from adg_plugin.engines.forward.hidden_states import last_layers
from adg_plugin.engines.forward.memory import is_out_of_memory
from adg_plugin.engines.generate import GenerateEngine
from adg_plugin.engines.models.loading import (
    Backbone,
    Source,
    embedding_rows,
    max_positions,
    need_quantization,
    pick_device,
)
from adg_plugin.engines.one_pass.engine import OnePassEngine
from adg_plugin.engines.one_pass.probe import one_pass_problem
from adg_plugin.engines.split import SplitEngine
from adg_plugin.errors import ModelError, OutOfMemoryError

logger = logging.getLogger(__name__)


@contextmanager
def engine_for(source: Source, config: ADGConfig) -> Iterator[Engine]:
    """Yield what samples answers and embeds them, as the config says, and give back what it holds.

    Raises:
        ADGError: the model, vLLM, or a server cannot be used as configured; nothing has been sampled then.
    """
    if not source.in_memory:
        check_requirements(config)
    if config.answers is not None:
        yield SplitEngine(GivenAnswers(), make_encoder(source.load(), config, longest=source.positions))
        return
    if config.engine == "hf":
        yield make_engine(source.load(), config)
        return
    # First where there are servers: they are compared with it.
    backbone = source.load() if config.engine == "vllm-server" else None
    with closing(make_sampler(source, config, backbone)) as sampler:
        yield SplitEngine(sampler, make_encoder(backbone or source.load(), config))


@contextmanager
def sampler_for(source: Source, config: ADGConfig) -> Iterator[Sampler]:
    """Yield what samples answers only, for an engine other than `hf`, and free what it holds; raises likewise."""
    check_requirements(config)
    with closing(make_sampler(source, config)) as sampler:
        yield sampler


def check_requirements(config: ADGConfig) -> None:
    """Validate that what the engine of this process needs is installed and its device here, before a model loads.

    Raises:
        MissingExtraError: a package is missing.
        ConfigError: vLLM cannot quantise as the settings ask.
        ModelError: there is no such device.
    """
    if config.engine == "vllm":
        from adg_plugin.engines.vllm.in_process import import_vllm, quantization

        import_vllm()
        quantization(config)
        return
    if config.engine == "vllm-server":
        from adg_plugin.engines.vllm.server import need_clients

        need_clients()
    pick_device(config.device)
    if config.load_in_4bit:
        need_quantization()


def make_sampler(source: Source, config: ADGConfig, backbone: Backbone | None = None) -> Sampler:
    """Return vLLM in this process, or behind the config's URLs.

    Args:
        backbone: the config's model where it is loaded anyway, to compare servers with it.

    Raises:
        ADGError: it is not installed, cannot be reached, or has another model.
    """
    if config.engine == "vllm":
        from adg_plugin.engines.vllm.in_process import VLLMSampler

        return VLLMSampler(
            config, source.tokenizer, source.eos_ids, dtype=source.dtype(config), positions=source.positions
        )
    from adg_plugin.engines.vllm.server import ServerSampler, need_clients
    from adg_plugin.engines.vllm.server_check import Probe

    need_clients()
    model = (backbone or source.load()).model
    probe = Probe.of(model, source.tokenizer)
    longest = config.max_prompt_tokens + config.max_new_tokens
    longest = longest if source.positions is None else min(longest, source.positions)
    return ServerSampler(
        config, source.tokenizer, source.eos_ids, probe=probe, longest=longest, vocabulary=embedding_rows(model)
    )


def make_engine(backbone: Backbone, config: ADGConfig) -> Engine:
    """Return the engine for a loaded model: in one pass where the model allows it, else by generating and re-encoding.

    Raises:
        ModelError: `layers` asks for more hidden states than the model has.
        OutOfMemoryError: nothing fits next to the model.
    """
    engine: Engine
    if _takes_our_attention(backbone.model, config, instead="generating and re-encoding"):
        engine = OnePassEngine(backbone.model, backbone.tokenizer, config, backbone.eos_ids)
    else:
        engine = GenerateEngine(backbone.model, backbone.tokenizer, config, backbone.eos_ids)
    return ReferencePooling(engine, backbone.model, backbone.tokenizer) if config.pooling == "reference" else engine


def make_encoder(backbone: Backbone, config: ADGConfig, *, longest: int | None = None) -> Encoder:
    """Return what embeds answers sampled elsewhere: prompts are encoded once for their answers where the model allows.

    Args:
        longest: tokens that a prompt and its answer may have; default what the settings allow.

    Raises:
        ModelError: `layers` asks for more hidden states than the model has.
        OutOfMemoryError: nothing fits next to the model.
    """
    if config.pooling == "reference":
        _check_model(backbone.model, config)
        return ReferenceEncoder(backbone.model, backbone.tokenizer, config)
    instead = "encoding each answer with its own copy of the prompt"
    if _takes_our_attention(backbone.model, config, instead=instead, longest=longest):
        return SharedPromptEncoder(backbone.model, config)
    return RepeatingEncoder(backbone.model, config)


def _takes_our_attention(
    model: PreTrainedModel, config: ADGConfig, *, instead: str, longest: int | None = None
) -> bool:
    _check_model(model, config)
    longest = longest or config.max_prompt_tokens + config.max_new_tokens
    try:
        problem = one_pass_problem(model, last_layers(config.layers), longest)
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        raise OutOfMemoryError(f"{model.device} has no memory left for a few tokens beside the model: free it") from err
    if problem is not None:
        logger.warning(
            "%s cannot be run in one pass (%s): %s instead, which is slower", type(model).__name__, problem, instead
        )
    return problem is None


def _check_model(model: PreTrainedModel, config: VectorSettings) -> None:
    """Raise a ModelError where the model lacks hidden states or positions that the vectors are made of."""
    layers = model.config.get_text_config().num_hidden_layers
    if config.layers > layers:
        raise ModelError(f"layers is {config.layers}: the model has {layers} layers, use at most that")
    if config.pooling == "reference":
        sizes = (layers, -min(REFERENCE_LAYERS), "layers"), (max_positions(model.config), REFERENCE_TOKENS, "positions")
        for number, needed, what in sizes:
            if number is not None and number < needed:
                raise ModelError(
                    f"pooling is reference: the model has {number} {what}, {needed} are needed; use pooling: answer"
                )
