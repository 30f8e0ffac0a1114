"""What identifies a row's answers: a hash of all that produced them, so that nothing stale is ever reused.

Beside it, for people, the versions of the packages that a result depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt

from adg_plugin.config.groups import SamplingSettings
from adg_plugin.config.schema import OLDER, ADGConfig
from adg_plugin.store.records import Answer

# Raise it when the same settings come to give other answers or vectors.
SAMPLING_VERSION = 2

# The settings that touch answers or vectors; all others reuse what is stored.
_OF_SAMPLING = ("engine", *SamplingSettings.model_fields)
_OF_VECTORS = ("pooling", "layers", "dtype", "load_in_4bit")
FOUR_BIT = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")
_PACKAGES = ("adg-plugin", "torch", "transformers", "datasets", "numpy", "scikit-learn", "bitsandbytes")


def sampling_fingerprint(config: ADGConfig, *, model: str, eos_ids: tuple[int, ...]) -> dict[str, Any]:
    """Return all that the answers of a prompt depend on, apart from the prompt itself."""
    names = _OF_VECTORS + (FOUR_BIT if config.load_in_4bit else ())
    recipe: dict[str, Any] = {name: getattr(config, name) for name in names}
    if config.answers is not None:  # each row's key holds its own
        recipe["answers"] = "given"
    else:
        recipe |= {name: getattr(config, name) for name in _OF_SAMPLING} | {"eos_ids": list(eos_ids)}
        # The same requests, seeds and weights, wherever vLLM runs.
        recipe["engine"] = config.engine.removesuffix("-server")
    if config.keep_vectors:  # rows stored without vectors will not do
        recipe["keep_vectors"] = True
    return {**recipe, "model": model, "version": SAMPLING_VERSION}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs between the settings of two runs, such as `top_k 0 (now 50)`, by name."""
    differing = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return {name: f"{name} {before.get(name)!r} (now {now.get(name)!r})" for name in differing}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs between two fingerprints of sampling, by name; `before` may be an older version's."""
    if "answers" in {*before, *now} and before.get("answers") != now.get("answers"):
        # Then nothing of the sampling can be compared.
        now_given = "answers" in now
        return {"answers": "sampled answers (now those of a file)" if now_given else "answers of a file (now sampled)"}
    if "temperature" in before:
        before = {**OLDER, **before}
    found = changes(before, now)
    if "version" in found:
        found["version"] = f"sampling rules of {found['version']}"
    return found


def digest(settings: Mapping[str, Any]) -> bytes:
    """Return 16 bytes that stand for JSON-like settings, whatever the order of their keys."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).digest()


def row_key(
    recipe: bytes,
    token_ids: npt.NDArray[np.int32],
    span: tuple[int, int],
    reference_ids: npt.NDArray[np.int32] | None = None,
    given: Sequence[Answer] | None = None,
) -> bytes:
    """Return the 16-byte key of a prompt's answers under a recipe's digest, and of their agreement if it is asked for.

    Args:
        span: of the instruction's own tokens.
        reference_ids: of the reference response, where agreement is asked for.
        given: answers that somebody else generated, where those are scored.
    """
    hashed = hashlib.blake2b(recipe, digest_size=16)
    hashed.update(np.array(span, dtype="<i4").tobytes())
    hashed.update(np.ascontiguousarray(token_ids, dtype="<i4").tobytes())
    if reference_ids is not None:
        hashed.update(b"agreement" + np.ascontiguousarray(reference_ids, dtype="<i4").tobytes())
    if given is not None:
        hashed.update(b"given" + json.dumps([[a.text, a.token_ids.tolist()] for a in given]).encode())
    return hashed.digest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
