"""One vLLM server over HTTP: what can go wrong on the way, and how it is told.

Nothing that a server sends is trusted: it may be endless, come drop by drop, or repeat the API key.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NoReturn

from adg_plugin.config.engines import EngineSettings
from adg_plugin.errors import ConfigError, ModelError, need, visible

_CONNECT_S = 10.0
_BUSY_S = 1.0
_EXCERPT = 300
# A response may have so many bytes, and so many more for each token in it: its number, its text, the JSON about it.
_BODY_BYTES = 4 << 20
_TOKEN_BYTES = 256
_LOOKED_AT = 4096  # characters of what it says
_PIECE = 8  # characters in a row that are in the API key, too, are hidden


class TryAgain(Exception):
    """The server is away or busy: the same request may well succeed later."""


class Failed(TryAgain):
    """The server broke off over this request, or its response is of no use; another try may meet the same again."""


class Refused(Exception):
    """The server will not take this request, however often it is sent."""


def import_httpx() -> ModuleType:
    """Return httpx; a MissingExtraError where it is not installed."""
    return need("httpx", extra="server", why="engine: vllm-server")


def make_client(config: EngineSettings) -> Any:
    """Return an asynchronous HTTP client with the API key, if there is one, in its headers."""
    httpx = import_httpx()
    key = api_key(config)
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            [f"{config.server_api_key_env}: the API key there has signs that no HTTP header can hold; set it again"]
        )
    # Uncompressed: a small body must not become a large one here.
    return httpx.AsyncClient(
        headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})},
        timeout=httpx.Timeout(None, connect=_CONNECT_S),  # a response as a whole has its limit in `Server.ask`
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=config.server_concurrency),
    )


def api_key(config: EngineSettings) -> str:
    """Return the servers' API key, empty where there is none."""
    return os.environ.get(config.server_api_key_env, "").strip()


def without_key(text: str, key: str) -> str:
    """Return a text in which the API key, and longer pieces of it, are replaced by `***`.

    What cannot be seen between its characters does not count, nor does their case.
    """
    key = "".join(key.lower().split())
    size = min(len(key), _PIECE)
    pieces = {key[at : at + size] for at in range(len(key) - size + 1)} - {""}
    places = [at for at, sign in enumerate(text) if sign.isprintable() and not sign.isspace()]
    signs = "".join(text[at].lower()[:1] for at in places)
    hidden: set[int] = set()
    for start in range(len(signs) - size + 1):
        if signs[start : start + size] in pieces:
            hidden.update(range(places[start], places[start + size - 1] + 1))
    return "".join(sign if at not in hidden else "" if at - 1 in hidden else "***" for at, sign in enumerate(text))


class Server:
    """A base URL.

    Attributes:
        url: without `/v1`.
        model: the name it gives the model; known once `check_server` has asked.
        verified: whether it holds the right model, as far as is known: not after it was away.
        trouble: what went wrong when it was last found not to be in order.
        in_flight: requests it has.
        busy_until: when it may be asked again after a response that it has too much to do; of `time.monotonic`.
    """

    def __init__(self, url: str, client: Any, config: EngineSettings) -> None:
        self.url, self._client, self._config = url, client, config
        self.model = self.trouble = ""
        self.verified = False
        self.in_flight = 0
        self.busy_until = 0.0

    async def ask(self, path: str, body: Mapping[str, Any] | None = None, *, tokens: int = 0) -> Any:
        """Return the JSON body of the response to a POST, or to a GET where there is no body to send.

        Args:
            tokens: how many the response may hold.

        Raises:
            TryAgain: no connection, or one of the statuses 408, 425, 429, 500 and above.
            Failed: of these, where this very request may be the reason: cut off, not whole within `server_timeout_s`,
                too long, or no JSON; and the statuses 500, 502, 504.
            Refused: another status.
            ModelError: it wants an API key, or another one.
        """
        httpx, where, seconds = import_httpx(), f"{self.url}{path}", self._config.server_timeout_s
        method, most = "GET" if body is None else "POST", _BODY_BYTES + _TOKEN_BYTES * tokens
        data = bytearray()
        self.in_flight += 1
        try:
            async with asyncio.timeout(seconds), self._client.stream(method, where, json=body) as response:
                async for piece in response.aiter_raw():
                    data += piece
                    if len(data) > most:
                        raise self.failure(f"{where}: the response has more than {most} bytes")
        except TimeoutError:
            raise self.failure(f"{where}: no whole response within {seconds:g} s") from None
        except httpx.TransportError as err:
            # Errors of this side may quote headers, and so the key.
            about = "" if isinstance(err, httpx.LocalProtocolError) else f" {self.quote(err)}".rstrip()
            away = isinstance(err, httpx.ConnectError | httpx.ConnectTimeout)
            raise self.failure(f"{self.url}: {type(err).__name__}{about}", TryAgain if away else Failed) from None
        finally:
            self.in_flight -= 1
        if not response.is_success:
            self._raise(response.status_code, f"{where} says {response.status_code}: {self._reason(response, data)}")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):  # of a number or a nesting that has no end, too
            raise self.failure(f"{where}: no whole JSON came") from None

    def quote(self, text: object) -> str:
        """Return what the server said, fit for a message: on one line, cut, and without the API key in it."""
        line = " ".join(without_key(str(text)[:_LOOKED_AT], api_key(self._config)).split())
        line = visible(line[: _EXCERPT + 1])
        return line if len(line) <= _EXCERPT else line[:_EXCERPT] + "…"

    def failure(self, text: str, kind: type[TryAgain] = Failed) -> TryAgain:
        """Return the error for a server that is not in order: it may not hold the right model any more."""
        self.verified, self.trouble = False, text
        return kind(text)

    def _raise(self, status: int, text: str) -> NoReturn:
        if status in (401, 403):
            given = "the key there is not the right one" if api_key(self._config) else "it is not set"
            name = self._config.server_api_key_env
            raise ModelError(f"{text}: put its API key into the environment variable {name} of this machine ({given})")
        if status in (408, 425, 429):
            self.busy_until = time.monotonic() + _BUSY_S
            raise TryAgain(text)
        if status < 500:
            raise Refused(text)
        # At once and without work, errors come faster than answers: a server that is out of order would get every row.
        raise self.failure(text, Failed if status in (500, 502, 504) else TryAgain)

    def _reason(self, response: Any, data: bytearray) -> str:
        text = data.decode(errors="replace")
        try:
            body = json.loads(text)
            error = body.get("error", body)
            message = error.get("message") if isinstance(error, dict) else error
            text = message if isinstance(message, str) else text
        except (ValueError, RecursionError, AttributeError):  # no JSON, or no object
            pass
        return self.quote(text.strip() or response.reason_phrase)
