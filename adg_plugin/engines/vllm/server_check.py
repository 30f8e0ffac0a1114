"""Whether a server holds the very model of the config: it is asked before it samples, and whenever it was away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.config.groups import ModelSettings
from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models.location import model_location
from adg_plugin.engines.vllm.client import Refused, Server
from adg_plugin.errors import ModelError

# Several scripts, code and numbers, so that another tokenizer or another tuning of the model shows.
_TEXT = (
    "<|im_start|>user\nName three rivers of Europe, and add 3.14 to 2,718.<|im_end|>\n<|im_start|>assistant\nSure! The "
    "Danube, the Rhine and the Volga.\n\ndef add(a, b):\n    return a + b\n\nEl río más largo es el Volga. Ответ: 42 — "
    "それだけです。\tThe quick brown fox, however, didn't jump."
)
# Of the mean difference between two log-probabilities. Measured on the demo model: rounding in bfloat16 gives 0.05 (a
# small model; larger ones round less), noise of 5 % on a quarter of the weights 0.29.
_TOLERANCE = 0.1


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
        server.model = card["id"]
        most = card.get("max_model_len")
        if isinstance(most, int) and most < longest:
            raise ModelError(
                f"server {server.url} takes {server.quote(most)} tokens, a row may have {longest}: start it with "
                f"--max-model-len {longest}, or lower max_prompt_tokens or max_new_tokens"
            )
        await _check_tokenizer(server, probe)
        await _check_weights(server, config, probe)
    except Refused as err:
        raise ModelError(f"{err}: is it a vLLM server (0.10.2 or newer), started with `vllm serve MODEL`?") from err
    # Of another shape, a number too large, a nesting too deep.
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as err:
        about = f"{type(err).__name__}: {server.quote(err)}"
        raise ModelError(
            f"server {server.url} does not respond as vLLM does ({about}): start it with `vllm serve`"
        ) from None
    server.verified = True


def _own_card(server: Server, config: ADGConfig, cards: list[dict[str, Any]]) -> dict[str, Any]:
    wanted, location = config.server_model, model_location(config)
    ours = {str(config.model), location, PurePath(location).name}  # the last part of a path, too
    named = [card for card in cards if isinstance(card["id"], str)]
    for card in named:
        known = {name for name in (card["id"], card.get("root")) if isinstance(name, str)}
        if wanted is not None and wanted in known:
            return card
        # The last part of a path will do: another machine has the model elsewhere, and the weights are compared.
        if wanted is None and (known | {PurePath(name).name for name in known}) & ours:
            return card
    has = server.quote(", ".join(card["id"] for card in named))
    if wanted is not None:
        raise ModelError(f"server_model is {wanted!r}: server {server.url} has {has}; use one of these")
    raise ModelError(
        f"model is {config.model!r}: server {server.url} has {has}; start it with that model, or, if one "
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
            f"server {server.url} has another tokenizer: token {at} of a test text is "
            f"{server.quote(theirs[at : at + 1])} there and {ours[at : at + 1]} here; serve the model's own (no "
            "--tokenizer)"
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
    theirs = np.array([entry[str(token)]["logprob"] for entry, token in found], np.float64)
    gap = float(np.abs(theirs - probe.logprobs).mean())
    if not gap <= _TOLERANCE:
        raise ModelError(
            f"server {server.url} has other weights than model {config.model!r}: log-probabilities of a test text "
            f"differ by {gap:.2f} on average; serve that model, unquantised, in the same dtype"
        )
