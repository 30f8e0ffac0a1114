"""Sampling by vLLM servers over HTTP: a row is asked for until it is there, by whichever server can."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward.results import REFUSED, rejection
from adg_plugin.engines.vllm.client import Failed, Refused, Server, TryAgain, import_httpx, make_client
from adg_plugin.engines.vllm.requests import Drawn, RowDraws, UnusableAnswer, sampling_settings, shown
from adg_plugin.engines.vllm.server_check import Probe, check_server
from adg_plugin.errors import ServerError, need
from adg_plugin.store.records import Prompt, RowResult

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WAIT_S = (0.2, 10.0)  # between two tries: the first at most, and all later ones
_START_TRIES = 3
_THREAD = "adg-servers"
_FAILURES_OF_A_ROW = 6  # so often for one row, while others succeed: it is the row


def need_clients() -> Any:
    """Return tenacity; a MissingExtraError where it, or httpx, is not installed."""
    import_httpx()
    return need("tenacity", extra="server", why="engine: vllm-server")


class ServerSampler:
    """Samples answers from one or several servers; each row once, whatever happens to a server.

    Args:
        config: `server_*`, the model and the sampling settings.
        probe: what tells the config's model from others.
        longest: tokens of a prompt and its answer.
        vocabulary: tokens that the model has.

    Raises:
        MissingExtraError: httpx or tenacity is not installed.
        ModelError: a server does not hold the config's model.
        ServerError: a server cannot be reached.
    """

    def __init__(
        self,
        config: ADGConfig,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int],
        *,
        probe: Probe,
        longest: int,
        vocabulary: int,
    ) -> None:
        self._tenacity = need_clients()
        self._config, self._tokenizer = config, tokenizer
        self._eos, self._settings = frozenset(eos_ids), sampling_settings(config, eos_ids)
        self._probe, self._longest, self._vocabulary = probe, longest, vocabulary
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=_THREAD, daemon=True)
        self._thread.start()
        for name in ("httpx", "httpcore.connection", "httpcore.http11"):
            logging.getLogger(name).addFilter(_is_of_others)
        self._client = make_client(config)
        self._servers = [Server(url, self._client, config) for url in config.server_urls]
        self._reviving: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(config.server_concurrency * len(self._servers))
        self._last_success = self._asked_since = time.monotonic()
        self._rows = 0
        self._warned_at = 0.0
        try:
            for server in self._servers:
                self._submit(self._first_check(server)).result()
        except BaseException:
            self.close()
            raise

    def run(self, prompts: Iterable[Prompt], /) -> Iterator[RowResult]:
        """Yield one result without vectors per prompt, in the order in which they finish.

        Raises:
            ServerError: no server has given a usable response for `server_timeout_s`.
            ModelError: a server came back with another model, or wants another API key.
        """
        source = iter(prompts)
        in_flight: set[Future[RowResult]] = set()
        # Twice what the servers take, so that they have work while the caller has its own to do.
        most = 2 * self._config.server_concurrency * len(self._servers)
        self._last_success = time.monotonic()
        try:
            while True:
                while len(in_flight) < most and (prompt := next(source, None)) is not None:
                    in_flight.add(self._submit(self._row(prompt)))
                if not in_flight:
                    return
                done, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in in_flight:
                future.cancel()

    def close(self) -> None:
        """Close the connections."""
        if not self._loop.is_closed():
            self._submit(self._end()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _first_check(self, server: Server) -> None:
        try:
            await self._check(server, self._tenacity.stop_after_attempt(_START_TRIES))
        except TryAgain as err:
            raise ServerError(
                f"server {server.url} cannot be used ({err}): start it with `vllm serve`, or take it out of server_urls"
            ) from err

    async def _check(self, server: Server, stop: Any) -> None:
        await self._again(lambda: check_server(server, self._config, self._probe, self._longest), stop)

    def _revive(self, server: Server) -> None:
        """Ask a server that was away for its model until it is back; a ModelError where it has another then."""
        task = self._reviving.get(server.url)
        if task is not None and task.done():
            self._reviving.pop(server.url).result()
            task = None
        if task is None and not server.verified:
            self._reviving[server.url] = asyncio.ensure_future(self._check(server, self._tenacity.stop_never))

    async def _row(self, prompt: Prompt) -> RowResult:
        """Return a row's answers, asked for as often as it takes."""
        row = RowDraws(prompt, self._config, self._eos, self._vocabulary)
        failures, failed_at = 0, 0.0
        tried: Counter[str] = Counter()

        async def attempt() -> None:
            nonlocal failures, failed_at
            try:
                await self._ask(row, tried)
            except Failed as err:
                failures += self._last_success > failed_at  # else it may be the server
                failed_at = time.monotonic()
                if failures == _FAILURES_OF_A_ROW:
                    raise Refused(str(err)) from err
                raise

        async with self._places:
            if not self._rows:  # while none was asked for, no answer came either
                self._asked_since = time.monotonic()
            self._rows += 1
            try:
                while row.missing:
                    await self._again(attempt, self._out_of_patience)
            except Refused as err:
                logger.warning("row %r is left out for now: %s", prompt.id, err)
                return rejection(prompt, REFUSED)
            except TryAgain as err:
                raise ServerError(
                    f"no usable response for {self._config.server_timeout_s:g} s (the last error: {err}): see to the "
                    "servers, and re-run the same command to resume. What is sampled is kept"
                ) from err
            finally:
                self._rows -= 1
        return row.result()

    async def _again(self, work: Callable[[], Awaitable[None]], stop: Any) -> None:
        """Await `work()` until it succeeds, with growing pauses, or `stop` says so; then raise its last error."""
        tenacity = self._tenacity
        first, most = _WAIT_S
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(TryAgain),
            wait=tenacity.wait_random_exponential(multiplier=first, max=most),
            stop=stop,
            before_sleep=self._warn,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                await work()

    def _out_of_patience(self, state: Any) -> bool:
        return time.monotonic() - max(self._last_success, self._asked_since) > self._config.server_timeout_s

    def _warn(self, state: Any) -> None:
        if time.monotonic() - max(self._warned_at, self._last_success) > 5:
            self._warned_at = time.monotonic()
            logger.warning("waiting for a server: %s", state.outcome.exception())

    async def _ask(self, row: RowDraws, tried: Counter[str]) -> None:
        """Send one request to the least busy of the servers that refused the row least, and give it the answers.

        Args:
            tried: by URL, how often a server was asked for them in vain.
        """
        for server in self._servers:
            if not server.verified:
                self._revive(server)
        up = [server for server in self._servers if server.verified]
        if not up:
            raise TryAgain("; ".join(server.trouble for server in self._servers))
        now = time.monotonic()
        server = min(up, key=lambda s: (tried[s.url], s.busy_until > now, s.in_flight))
        tried[server.url] += 1
        body = {
            "model": server.model,
            "prompt": row.prompt.token_ids.tolist(),
            "n": row.missing,
            "seed": row.seed,
            "return_token_ids": True,
            "add_special_tokens": False,
            **self._settings,
        }
        tokens = len(row.prompt) + row.missing * self._config.max_new_tokens
        response = await server.ask("/v1/completions", body, tokens=tokens)
        try:
            row.take(_drawn(response, body), self._tokenizer)
        except (LookupError, TypeError, UnusableAnswer) as err:  # another shape, or other values, than asked for
            about = f"{type(err).__name__}: {server.quote(err)}"
            raise server.failure(f"{server.url}: unusable response ({about})") from None
        tried[server.url] -= 1
        self._last_success = time.monotonic()


def _is_of_others(record: logging.LogRecord) -> bool:
    """Return whether a record is of no request here: there is one for each row, and it quotes what the server says."""
    return record.threadName != _THREAD


def _drawn(response: Any, body: Mapping[str, Any]) -> list[Drawn]:
    """Return the answers in the response to a request; an UnusableAnswer where it is that to another one."""
    if response["model"] != body["model"]:
        raise UnusableAnswer(f"the answers are of model {shown(response['model'])}")
    drawn = []
    for choice in response["choices"]:
        if "prompt_token_ids" in choice and choice["prompt_token_ids"] not in (None, body["prompt"]):
            raise UnusableAnswer("the answers are to another prompt")
        drawn.append((choice["index"], choice["token_ids"], choice["finish_reason"]))
    return drawn
