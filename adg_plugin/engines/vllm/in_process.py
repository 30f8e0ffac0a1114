"""Sampling by vLLM in this process: token ids in, token ids out."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from adg_plugin.config.groups import ModelSettings
from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models.location import model_location
from adg_plugin.engines.vllm.requests import RowDraws, UnusableAnswer, sampling_settings
from adg_plugin.errors import ConfigError, MissingExtraError, ModelError, first_line, need
from adg_plugin.store.records import Prompt, RowResult

_BNB_PLUGIN = "vllm-bnb-plugin"
_CPU_CACHE_BYTES = 2 << 30


class VLLMSampler:
    """Keeps vLLM's queue filled with rows and yields their answers as they finish.

    Args:
        config: the model, sampling settings, `vllm_options`.
        dtype: of the weights, as torch names it; vLLM's own `auto` is not that of transformers.
        positions: tokens that the model can tell apart by position, or None where it sets no limit.

    Raises:
        MissingExtraError: vLLM is not installed, or not its plugin for 4-bit.
        ModelError: vLLM cannot load the model, or finds no memory for it.
    """

    def __init__(
        self,
        config: ADGConfig,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int],
        *,
        dtype: str,
        positions: int | None = None,
    ) -> None:
        vllm = import_vllm()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise ConfigError(
                [
                    "engine is 'vllm', and this is one of several ranks: for several accelerators use one process with "
                    "vllm_options.tensor_parallel_size, executor: ray, or engine: vllm-server"
                ]
            )
        self._tokenizer, self._config = tokenizer, config
        self._eos = frozenset(eos_ids)
        self._settings = sampling_settings(config, eos_ids) | {"detokenize": False}
        self._params = vllm.SamplingParams
        options = _options(config, dtype, positions)
        try:
            self._llm: Any = vllm.LLM(**options)
        except Exception as err:  # of any kind: what vLLM raises is its own affair, and its text says what
            raise ModelError(
                f"model is {model_location(config)!r}: vLLM cannot load it ({first_line(err)}): see vllm_options "
                "(gpu_memory_utilization, tensor_parallel_size, enforce_eager), or use engine: hf"
            ) from err
        self._engine = self._llm.llm_engine
        # More than vLLM has places for: whenever one is free, the next row is there.
        self._vocabulary = int(self._engine.vllm_config.model_config.get_vocab_size())
        places = int(self._engine.vllm_config.scheduler_config.max_num_seqs)
        self._rows_in_flight = max(2, 2 * places // config.num_samples)

    def run(self, prompts: Iterable[Prompt], /) -> Iterator[RowResult]:
        """Yield results without vectors as prompts finish; a ModelError if vLLM ends an answer otherwise than asked."""
        source, numbers = iter(prompts), count()
        rows: dict[str, RowDraws] = {}

        def ask(row: RowDraws) -> None:
            request = str(next(numbers))
            rows[request] = row
            params = self._params(n=row.missing, seed=row.seed, **self._settings)
            # RequestOutputKind.FINAL_ONLY: tokens on their way are of no use here.
            params.output_kind = type(params.output_kind).FINAL_ONLY
            self._engine.add_request(request, {"prompt_token_ids": row.prompt.token_ids.tolist()}, params)

        try:
            while True:
                while len(rows) < self._rows_in_flight and (prompt := next(source, None)) is not None:
                    ask(RowDraws(prompt, self._config, self._eos, self._vocabulary))
                if not rows:
                    return
                for output in self._stepped():
                    if output.finished:
                        row = rows.pop(output.request_id)
                        self._take(row, output)
                        if row.missing:
                            ask(row)
                        else:
                            yield row.result()
        finally:
            # Whoever takes the results has stopped: the engine must not go on with the others.
            if rows and self._engine is not None:
                self._engine.abort_request(list(rows))

    def _stepped(self) -> Any:
        try:
            return self._engine.step()
        except Exception as err:  # of any kind, see above; the engine is of no use any more
            raise ModelError(
                f"vLLM has failed ({first_line(err)}): see its own messages. What is sampled is kept; re-run the "
                "same command to resume. If it was memory, lower vllm_options.gpu_memory_utilization or max_num_seqs"
            ) from err

    def _take(self, row: RowDraws, output: Any) -> None:
        drawn = [(choice.index, list(choice.token_ids), choice.finish_reason) for choice in output.outputs]
        try:
            row.take(drawn, self._tokenizer)
        except UnusableAnswer as err:
            raise ModelError(
                f"row {row.prompt.id!r}: vLLM was to draw {row.missing} answers, but {err}: use engine: hf, or another "
                "version of vLLM"
            ) from err

    def close(self) -> None:
        """Give back the model's memory, and the processes that hold it."""
        if self._llm is None:
            return
        self._engine.engine_core.shutdown()
        self._llm = self._engine = None
        gc.collect()


def import_vllm() -> Any:
    """Return vLLM; a MissingExtraError where it is not installed."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
    # A forked engine would inherit the lock of the run folder, and hold it when this process is killed.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    try:
        return need("vllm", extra="vllm", why="engine: vllm")
    except MissingExtraError as err:
        raise MissingExtraError(
            f"{err}, in an environment of its own (Axolotl's cannot hold it). `adg sample` draws the answers there and "
            "`adg select` goes on here; or use engine: vllm-server, or engine: hf"
        ) from None


def _options(config: ADGConfig, dtype: str, positions: int | None) -> dict[str, Any]:
    from vllm.platforms import current_platform

    length = config.max_prompt_tokens + config.max_new_tokens
    length = length if positions is None else min(length, positions)
    options: dict[str, Any] = {
        "model": model_location(config),
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "dtype": dtype,
        "max_model_len": length,
        "seed": config.seed % 2**31,
        "generation_config": "vllm",  # nothing from the model's own
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
    }
    if quantized := quantization(config):
        options["quantization"] = quantized
    if current_platform.is_cpu():
        # A seeded request whose prefill is split kills the engine there, so a step must hold a whole prompt.
        options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(2048, length), "enforce_eager": True}
        options |= {"kv_cache_memory_bytes": _CPU_CACHE_BYTES}
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return options | config.vllm_options


def quantization(config: ModelSettings) -> str | None:
    """Return vLLM's name of the quantisation, None for weights as they are.

    Raises:
        MissingExtraError: vLLM cannot do it here; it would sample with whole weights.
        ConfigError: the plugin knows another form of 4-bit only.
    """
    if not config.load_in_4bit:
        return None
    try:
        version(_BNB_PLUGIN)
    except PackageNotFoundError:
        raise MissingExtraError(
            f"load_in_4bit with engine: vllm needs `{_BNB_PLUGIN}`: pip install {_BNB_PLUGIN}, or use engine: hf"
        ) from None
    problems = []
    if config.bnb_4bit_quant_type != "nf4":
        problems.append(f"bnb_4bit_quant_type is {config.bnb_4bit_quant_type!r}: vLLM quantises to nf4; use that")
    if not config.bnb_4bit_use_double_quant:
        problems.append("bnb_4bit_use_double_quant is False: vLLM always does it; set it to true, or use engine: hf")
    if problems:
        raise ConfigError(problems)
    return "bitsandbytes"
