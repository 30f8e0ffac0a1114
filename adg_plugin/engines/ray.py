"""An engine whose work is done by the workers of a Ray cluster, a block of rows at a time (Ray Data)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ADGError, ModelError, first_line, need
from adg_plugin.store.parts import to_results, to_table
from adg_plugin.store.records import Prompt, RowResult
from adg_plugin.store.staging import PROMPT, prompt_record, prompts_of

# Rows of one Ray Data execution. Workers load the model once for each, so it is large for that; the prompts of one
# are in the object store together, so it is small compared to a pool for which many machines are worth it.
_ROWS_AT_ONCE = 1 << 17
_OWN_ERRORS = f"{ADGError.__module__}."


def need_ray() -> Any:
    """Return Ray; a MissingExtraError where it is not installed."""
    ray = need("ray", extra="ray", why="executor: ray")
    need("ray.data", extra="ray", why="executor: ray")
    return ray


class RayEngine:
    """Hands blocks of rows to a pool of workers, each of which holds an engine, and yields what comes back.

    A worker that dies is replaced, and its block repeated; the results of the others are not touched.

    Args:
        config: `ray_*`, and the settings of the workers' engine.
        identity: of the model, which every worker must find.
        embed: False samples answers only.

    Raises:
        MissingExtraError: Ray is not installed.
        ADGError: no cluster is found.
    """

    def __init__(self, config: ADGConfig, identity: str, *, embed: bool = True) -> None:
        self._ray = need_ray()
        self._config, self._identity, self._embed = config, identity, embed
        if not self._ray.is_initialized():
            try:
                self._ray.init(
                    address=config.ray_address,
                    logging_level=logging.WARNING,
                    log_to_driver=False,
                    configure_logging=False,
                )
            except (ConnectionError, ValueError, RuntimeError) as err:
                if config.ray_address is None:
                    raise ADGError(f"Ray cannot be started on this machine: {first_line(err)}") from err
                raise ADGError(
                    f"ray_address is {config.ray_address!r}: there is no such cluster ({first_line(err)}); start "
                    "one with `ray start --head`, or leave ray_address out"
                ) from err

    def run(self, prompts: Iterable[Prompt], /) -> Iterator[RowResult]:
        """Yield a result per prompt as each finishes; an ADGError, keeping what came, if workers or engine fail."""
        source = iter(prompts)
        while rows := list(islice(source, _ROWS_AT_ONCE)):
            yield from self._executed(rows)

    def _executed(self, rows: Sequence[Prompt]) -> Iterator[RowResult]:
        from ray.data import ActorPoolStrategy, DataContext, from_arrow

        DataContext.get_current().enable_progress_bars = False
        config, size = self._config, self._config.ray_block_rows
        gpus = config.ray_num_gpus
        if gpus is None:
            gpus = 1.0 if self._ray.cluster_resources().get("GPU") else 0.0
        records = [prompt_record(row) for row in rows]
        blocks = [pa.Table.from_pylist(records[start : start + size], PROMPT) for start in range(0, len(rows), size)]
        results = from_arrow(blocks).map_batches(
            Worker,
            fn_constructor_kwargs={
                "settings": config.updated(executor="inline").model_dump(mode="json", exclude_unset=True),
                "identity": self._identity,
                "embed": self._embed,
            },
            batch_size=None,  # the block as it is
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=config.ray_min_workers, max_size=config.ray_max_workers),
            num_cpus=config.ray_num_cpus,
            num_gpus=gpus,
        )
        try:
            for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from to_results(table)
        except self._ray.exceptions.RayError as err:
            raise ADGError(f"a Ray worker failed: {_cause(err)}. What has come back is kept") from err


class Worker:
    """An engine in a process of a Ray cluster."""

    def __init__(self, settings: dict[str, Any], identity: str, embed: bool) -> None:
        from adg_plugin.engines.factory import engine_for, sampler_for
        from adg_plugin.engines.models.loading import Source

        config = ADGConfig.parse(settings)
        source = Source.configured(config)
        if source.identity != identity:
            raise ModelError(
                f"model is {config.model!r}: this worker finds other weights there than the process that started it; "
                "use a hub name with a revision, or a folder that all machines share"
            )
        self._stack = ExitStack()
        making = engine_for if embed or config.engine == "hf" else sampler_for
        self._engine: Any = self._stack.enter_context(making(source, config))  # until the process ends

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the results of a block of prompts."""
        return to_table(list(self._engine.run(prompts_of(block))))


def _cause(err: BaseException | None) -> str:
    """Return what a worker raised: one line, this package's own error where there is one in the chain."""
    lines: list[str] = []
    while err is not None:
        lines += [line for line in str(err).splitlines() if line.strip()] or [type(err).__name__]
        err = err.__cause__ or err.__context__
    own = [line for line in lines if line.startswith(_OWN_ERRORS)]
    return own[-1].removeprefix(_OWN_ERRORS) if own else lines[-1]
