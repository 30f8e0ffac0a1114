"""One vLLM server over HTTP: what can go wrong on the way, by what to do about it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from adg_plugin.config.engines import EngineSettings
from adg_plugin.errors import ConfigError, ModelError, need

_WHY = "engine: vllm-server"
_CONNECT_S = 10.0
_BUSY_S = 1.0
_EXCERPT = 300


class TryAgain(Exception):
    """The server is away, busy, or its response was cut off: the same request may well succeed later."""


class Failed(TryAgain):
    """The server had an error of its own over this request (500); another try may meet it again."""


class Refused(Exception):
    """The server will not take this request, however often it is sent."""


def import_httpx() -> ModuleType:
    """Return httpx; a MissingExtraError where it is not installed."""
    return need("httpx", extra="server", why=_WHY)


def make_client(config: EngineSettings) -> Any:
    """Return an asynchronous HTTP client with the API key, if there is one, in its headers."""
    httpx = import_httpx()
    key = os.environ.get(config.server_api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            [f"{config.server_api_key_env}: the API key there has signs that no HTTP header can hold; set it again"]
        )
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(config.server_timeout_s, connect=_CONNECT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=config.server_concurrency),
    )


class Server:
    """A base URL.

    Attributes:
        url: without `/v1`.
        model: the name it gives the model; known once `check_server` has asked.
        verified: whether it holds the right model, as far as is known: not after it was away.
        in_flight: requests it has.
        busy_until: when it may be asked again after a response that it has too much to do; of `time.monotonic`.
    """

    def __init__(self, url: str, client: Any, key_env: str) -> None:
        self.url, self._client, self._key_env = url, client, key_env
        self.model = ""
        self.verified = False
        self.in_flight = 0
        self.busy_until = 0.0

    async def get(self, path: str) -> Any:
        """Return the JSON body of a GET; raises as `post`."""
        return await self._sent("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON body of a POST.

        Raises:
            TryAgain: no connection, a cut off body, or one of the statuses 408, 429, 5xx.
            Refused: another status.
            ModelError: it wants an API key, or another one.
        """
        return await self._sent("POST", path, body)

    async def _sent(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        httpx = import_httpx()
        self.in_flight += 1
        try:
            response = await self._client.request(method, f"{self.url}{path}", json=body)
            data = response.json() if response.is_success else None
        except httpx.TransportError as err:
            self.verified = False
            # Errors of this side may quote headers, and so the key.
            about = "" if isinstance(err, httpx.LocalProtocolError) else f" {err}"
            raise TryAgain(f"{self.url}: {type(err).__name__}{about}".strip()) from err
        except (httpx.DecodingError, json.JSONDecodeError, UnicodeDecodeError) as err:
            raise TryAgain(f"{self.url}{path}: no whole JSON came") from err
        finally:
            self.in_flight -= 1
        if response.is_success:
            return data
        self._raise(response, f"{self.url}{path} says {response.status_code}: {_reason(response)}")

    def _raise(self, response: Any, text: str) -> None:
        if response.status_code in (401, 403):
            given = "the key there is not the right one" if os.environ.get(self._key_env) else "it is not set"
            raise ModelError(
                f"{text}: put its API key into the environment variable {self._key_env} of this machine ({given})"
            )
        # At once and without work, errors come faster than answers: a server that is out of order would get every row.
        if response.status_code >= 500:
            self.verified = False
        if response.status_code in (408, 425, 429):
            self.busy_until = time.monotonic() + _BUSY_S
        if response.status_code == 500:
            raise Failed(text)
        if response.status_code in (408, 425, 429) or response.status_code > 500:
            raise TryAgain(text)
        raise Refused(text)


def _reason(response: Any) -> str:
    try:
        body = response.json()
        error = body.get("error", body)
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = response.text
    text = " ".join(str(text).split()) or response.reason_phrase
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…"
