"""Where answers come from: engines, servers, Ray, or a file. Only `engine` and `answers` touch an answer."""

from __future__ import annotations

import math
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from adg_plugin.config.values import Float, Int, OptionalFloat, OptionalInt, PathText, Settings
from adg_plugin.errors import ConfigError

EngineName = Literal["hf", "vllm", "vllm-server"]

# Of `vllm.LLM`: those that change speed, memory or where it runs, and no answer.
VLLM_OPTIONS = (
    "block_size",
    "cpu_offload_gb",
    "disable_custom_all_reduce",
    "distributed_executor_backend",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "max_num_batched_tokens",
    "max_num_seqs",
    "max_parallel_loading_workers",
    "pipeline_parallel_size",
    "tensor_parallel_size",
)


class EngineSettings(Settings):
    """Where answers come from: this process, vLLM, servers, the workers of a Ray cluster, or a file."""

    engine: EngineName = Field(
        "hf",
        description="What samples. `hf`: transformers, answers and vectors in one pass; `vllm`: vLLM in this process, "
        "vectors after it; `vllm-server`: vLLM behind `server_urls`.",
    )
    vllm_options: dict[str, Any] = Field(
        default_factory=dict,
        description=f"Options of `vllm.LLM` that change no answer: {', '.join(f'`{name}`' for name in VLLM_OPTIONS)}.",
    )
    server_urls: tuple[str, ...] = Field(
        (), validate_default=True, description="Base URLs of vLLM servers: `[http://gpu1:8000, http://gpu2:8000]`."
    )
    server_model: str | None = Field(
        None, min_length=1, description="The name that the servers give the model, where it is not that of `model`."
    )
    server_api_key_env: str = Field(
        "ADG_SERVER_API_KEY",
        min_length=1,
        description="Environment variable with the servers' API key; the key itself is written nowhere.",
    )
    server_concurrency: Int = Field(64, ge=1, le=4096, description="Rows in flight at each server.")
    server_timeout_s: Float = Field(
        600.0,
        gt=0,
        description="Seconds to wait for one row's answers, and for servers that do not respond.",
        json_schema_extra={"fix": "use a number of seconds above 0"},
    )
    executor: Literal["inline", "ray"] = Field(
        "inline", description="Where the engine runs: `inline` in this process, `ray` on the workers of a Ray cluster."
    )
    ray_address: str | None = Field(
        None, min_length=1, description="Ray cluster to join (`auto`); default: RAY_ADDRESS, else one of this machine."
    )
    ray_min_workers: Int = Field(1, ge=1, description="Workers to keep.")
    ray_max_workers: OptionalInt = Field(
        None,
        ge=1,
        description="Workers to grow to. Default: as many as the cluster has room for.",
        json_schema_extra={"fix": "use a whole number, ray_min_workers or more, or leave it out"},
    )
    ray_num_gpus: OptionalFloat = Field(
        None,
        ge=0,
        description="GPUs of each worker; a fraction shares one. Default: 1 where the cluster has any, else 0.",
    )
    ray_num_cpus: Float = Field(1.0, ge=0, description="CPUs of each worker.")
    ray_block_rows: Int = Field(1024, ge=1, description="Rows handed to a worker at a time, and repeated if it dies.")

    answers: PathText | None = Field(
        None,
        min_length=1,
        description="File with `generated_answers` of the rows: these are scored, and nothing is sampled.",
    )

    def refuse_given_answers(self, what: str) -> None:
        """Raise a ConfigError where answers come from a file; `what`, a clause, says what needs sampled ones."""
        if self.answers is not None:
            raise ConfigError([f"answers is {self.answers!r}: {what}; leave it out"])

    def devices(self, ranks: int = 1) -> int | None:
        """Return how many devices sample at once, a server counting as one; None where Ray decides."""
        if self.executor == "ray":
            return None
        if self.engine == "vllm-server":
            return len(self.server_urls)
        if self.engine == "vllm":
            sizes = (self.vllm_options.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
            return math.prod(int(size) for size in sizes)
        return ranks

    @field_validator("vllm_options")
    @classmethod
    def _known_options(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        unknown = sorted(set(value) - set(VLLM_OPTIONS))
        if unknown:
            names = ", ".join(unknown)
            message = f"{names}: not among the options that change no answer ({', '.join(VLLM_OPTIONS)})"
            raise PydanticCustomError("vllm_options", "{message}", {"message": message})
        for name, option in value.items():
            if not isinstance(option, bool | int | str | None) and not (
                isinstance(option, float) and math.isfinite(option)
            ):
                message = f"{name} is {option!r}: use a number, text, true or false"
                raise PydanticCustomError("vllm_options", "{message}", {"message": message})
        if value and info.data.get("engine") == "vllm-server":
            raise PydanticCustomError("vllm_options", "give them to `vllm serve`, or use engine: vllm")
        return value

    @field_validator("server_urls", mode="before")
    @classmethod
    def _one_url(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("server_urls")
    @classmethod
    def _plain_urls(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        engine = info.data.get("engine", "hf")
        if bool(value) != (engine == "vllm-server"):
            fix = "give the servers, such as [http://localhost:8000]" if not value else "set engine: vllm-server, too"
            raise PydanticCustomError("server_urls", "{fix}", {"fix": fix})
        urls = []
        for url in value:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise PydanticCustomError("server_urls", "use URLs such as http://localhost:8000")
            if parts.username or parts.password or parts.query or parts.fragment:
                raise PydanticCustomError(
                    "server_urls", "the run folder keeps URLs: leave keys and passwords out, see server_api_key_env"
                )
            urls.append(url.rstrip("/").removesuffix("/v1"))
        if len(set(urls)) < len(urls):
            raise PydanticCustomError("server_urls", "name each server once")
        return tuple(urls)

    @field_validator("answers")
    @classmethod
    def _embedded_here(cls, value: str | None, info: ValidationInfo) -> str | None:
        for key, here in (("engine", "hf"), ("executor", "inline")):
            if value is not None and (other := info.data.get(key, here)) != here:
                message = f"they are only embedded, and {key} is {other!r}: leave {key} out, or set {key}: {here}"
                raise PydanticCustomError("embedded_here", "{message}", {"message": message})
        return value

    @field_validator("ray_max_workers")
    @classmethod
    def _not_below_the_minimum(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value < info.data.get("ray_min_workers", 1):
            raise PydanticCustomError("ray_max_workers", "use at least ray_min_workers")
        return value
