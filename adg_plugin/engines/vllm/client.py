"""One vLLM server over HTTP: what can go wrong on the way, and whether it holds the very model of the config.

It is asked for its model before it samples, and whenever it was away.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.config.engines import EngineSettings
from adg_plugin.config.groups import ModelSettings
from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models.location import model_location
from adg_plugin.errors import ConfigError, ModelError, need

_CONNECT_S = 10.0
_BUSY_S = 1.0
_EXCERPT = 300
# Several scripts, code and numbers, so that another tokenizer or another tuning of the model shows.
_TEXT = (
    "<|im_start|>user\nName three rivers of Europe, and add 3.14 to 2,718.<|im_end|>\n<|im_start|>assistant\nSure! The "
    "Danube, the Rhine and the Volga.\n\ndef add(a, b):\n    return a + b\n\nEl río más largo es el Volga. Ответ: 42 — "
    "それだけです。\tThe quick brown fox, however, didn't jump."
)
# Of the mean difference between two log-probabilities. Measured on the demo model: rounding in bfloat16 gives 0.05 (a
# small model; larger ones round less), noise of 5 % on a quarter of the weights 0.29.
_TOLERANCE = 0.1


class TryAgain(Exception):
    """The server is away, busy, or its response was cut off: the same request may well succeed later."""


class Failed(TryAgain):
    """The server had an error of its own over this request (500); another try may meet it again."""


class Refused(Exception):
    """The server will not take this request, however often it is sent."""


def import_httpx() -> ModuleType:
    """Return httpx; a MissingExtraError where it is not installed."""
    return need("httpx", extra="server", why="engine: vllm-server")


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

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON body of the response to a POST, or to a GET where there is no body to send.

        Raises:
            TryAgain: no connection, a cut off body, or one of the statuses 408, 429, 5xx.
            Refused: another status.
            ModelError: it wants an API key, or another one.
        """
        httpx = import_httpx()
        self.in_flight += 1
        try:
            response = await self._client.request("GET" if body is None else "POST", f"{self.url}{path}", json=body)
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


@dataclass(frozen=True, slots=True)
class Probe:
    """Tokens, and what the config's model thinks of them.

    Attributes:
        text: what the tokens are made of.
        token_ids: (L,) of the tokenizer.
        logprobs: (L - 1,) log-probability of each token but the first, after those before it.
    """

    text: str
    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Probe:
        """Return the probe for a model that is loaded here."""
        ids = torch.tensor([tokenizer(_TEXT, add_special_tokens=False)["input_ids"]])
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits[0, :-1].float()
        logprobs = logits.log_softmax(-1).cpu().gather(1, ids[0, 1:, None])[:, 0]
        return cls(_TEXT, ids[0].numpy().astype(np.int32), logprobs.numpy())


async def check_server(server: Server, config: ADGConfig, probe: Probe, longest: int) -> None:
    """Validate that `server` holds the config's model; learns the name it gives it.

    Args:
        server: the server; `model` and `verified` are set.
        longest: tokens of a prompt and its answer.

    Raises:
        ModelError: another model, another tokenizer, too short a context, or no token ids; names which and the fix.
        TryAgain: the server cannot be reached.
    """
    try:
        card = _own_card(server, config, (await server.ask("/v1/models"))["data"])
        server.model = str(card["id"])
        most = card.get("max_model_len")
        if isinstance(most, int) and most < longest:
            raise ModelError(
                f"server {server.url} takes {most} tokens, a row may have {longest}: start it with "
                f"--max-model-len {longest}, or lower max_prompt_tokens or max_new_tokens"
            )
        await _check_tokenizer(server, probe)
        await _check_weights(server, config, probe)
    except Refused as err:
        raise ModelError(f"{err}: is it a vLLM server (0.10.2 or newer), started with `vllm serve MODEL`?") from err
    except (KeyError, TypeError, IndexError, ValueError) as err:
        raise ModelError(
            f"server {server.url} does not respond as vLLM does ({type(err).__name__}: {err}): start it with "
            "`vllm serve`"
        ) from err
    server.verified = True


def _own_card(server: Server, config: ADGConfig, cards: list[dict[str, Any]]) -> dict[str, Any]:
    names = [str(card["id"]) for card in cards]
    wanted, location = config.server_model, model_location(config)
    ours = {str(config.model), location, PurePath(location).name}  # the last part of a path, too
    for card in cards:
        known = {str(card["id"]), str(card.get("root"))}
        if wanted is not None and wanted in known:
            return card
        # The last part of a path will do: another machine has the model elsewhere, and the weights are compared.
        if wanted is None and (known | {PurePath(name).name for name in known}) & ours:
            return card
    if wanted is not None:
        raise ModelError(f"server_model is {wanted!r}: server {server.url} has {', '.join(names)}; use one of these")
    raise ModelError(
        f"model is {config.model!r}: server {server.url} has {', '.join(names)}; start it with that model, or, if one "
        "of them is it under another name, set server_model"
    )


async def _check_tokenizer(server: Server, probe: Probe) -> None:
    body = {"model": server.model, "prompt": probe.text, "add_special_tokens": False}
    try:
        theirs = (await server.ask("/tokenize", body))["tokens"]
    except Refused:
        return  # not offered; the log-probabilities will show it
    ours = probe.token_ids.tolist()
    if theirs != ours:
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        raise ModelError(
            f"server {server.url} has another tokenizer: token {at} of a test text is {theirs[at : at + 1]} there and "
            f"{ours[at : at + 1]} here; serve the model's own (no --tokenizer)"
        )


async def _check_weights(server: Server, config: ModelSettings, probe: Probe) -> None:
    body = {
        "model": server.model,
        "prompt": probe.token_ids.tolist(),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
        "return_token_ids": True,
        "add_special_tokens": False,
    }
    choice = (await server.ask("/v1/completions", body))["choices"][0]
    if not isinstance(choice.get("token_ids"), list):
        raise ModelError(f"server {server.url} returns no token ids: it needs vLLM 0.10.2 or newer")
    found = zip(choice["prompt_logprobs"][1:], probe.token_ids[1:], strict=True)
    theirs = np.array([entry[str(token)]["logprob"] for entry, token in found])
    gap = float(np.abs(theirs - probe.logprobs).mean())
    if not gap <= _TOLERANCE:
        raise ModelError(
            f"server {server.url} has other weights than model {config.model!r}: log-probabilities of a test text "
            f"differ by {gap:.2f} on average; serve that model, unquantised, in the same dtype"
        )
