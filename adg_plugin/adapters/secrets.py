"""Settings that are never written, such as tokens and keys: a stage in a process of its own gets them otherwise."""

from __future__ import annotations

import base64
import json
import os
import re
import zlib
from collections.abc import Mapping
from typing import Any

from adg_plugin.errors import redacted

_VARIABLE = "ADG_UNWRITTEN"
_SECRET = re.compile(r"(token|key|key_id|secret|password|passwd|credentials?)$", re.IGNORECASE)
_NO_SECRET = re.compile(r"(bos|cls|eos|eot|mask|pad|sep|unk|image|audio|video)_token|template_thinking_key")


def public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they may be written and shown: without tokens, keys and passwords, and with redacted URLs."""
    return {name: _public(value) for name, value in settings.items() if not _is_secret(name, value)}


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return public(value)
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def _is_secret(name: str, value: Any) -> bool:
    """Return whether a setting gives access; `hf_use_auth_token: true` only says that something else does."""
    key = str(name).rpartition(".")[2].lstrip("-").replace("-", "_")
    named = _SECRET.search(key) and not _NO_SECRET.fullmatch(key)
    return bool(named) and not isinstance(value, bool | None)


def unwritten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the settings of which `public` leaves something out, whole."""
    shown = json.loads(json.dumps(public(settings), default=str))
    whole = json.loads(json.dumps(dict(settings), default=str))
    return {name: value for name, value in whole.items() if name not in shown or shown[name] != value}


def handed_over(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the variable of the environment from which `taken_over` reads these settings in another process."""
    # Packed: the system limits a variable to 128 KiB, and a hundred signed URLs of one bucket are longer.
    packed = base64.b64encode(zlib.compress(json.dumps(dict(settings)).encode())).decode()
    return {_VARIABLE: packed}


def taken_over() -> dict[str, Any]:
    """Return the settings that the command which started this process has handed over; none where nobody did."""
    packed = os.environ.get(_VARIABLE)
    settings: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed))) if packed else {}
    return settings


def shown(*arguments: str) -> str:
    """Return arguments of a command line for people, with `***` in the place of tokens and keys."""
    words = []
    for before, flag in zip(("", *arguments), arguments, strict=False):
        name, equals, value = flag.partition("=")
        if equals and _is_secret(name, value):
            flag = f"{name}=***"
        elif before.startswith("--") and _is_secret(before, flag):
            flag = "***"
        words.append(redacted(flag))
    return " ".join(words)
