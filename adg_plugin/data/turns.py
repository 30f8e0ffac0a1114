"""Turns of a conversation, as data sets write them -> turns with the roles and keys that chat templates know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.cells import Reason, UnusableRowError, decoded, is_missing, shown, text_of

Message = dict[str, Any]

# The names of the field, in lower case; an entry's own `roles` come before them.
_NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "ai", "bot", "chatbot", "model", "bing", "bard", "claude", "llama"),
    "tool": ("tool", "observation", "function", "function_response", "tool_response", "ipython"),
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names}
_CALLS = ("function_call", "tool_call")  # roles of turns whose text is a call, as JSON
_ACCEPTED = ", ".join([*_ROLES, *_CALLS])
_PAYLOADS = ("tool_calls", "reasoning_content", "thinking")  # what an answer may consist of besides its content


def read_turns(value: Any, column: str, spec: DatasetSpec) -> list[Message]:
    """Return the turns of a column, or of the JSON text that it holds.

    Raises:
        UnusableRowError: no list of turns, an unknown role, content that is not text; names the turn.
    """
    value = decoded(value)
    if not isinstance(value, list):
        raise UnusableRowError(Reason.BAD_TYPE, f"{column} is {shown(value)}, expected a list of turns")
    return [_turn(turn, f"{column}[{number}]", spec) for number, turn in enumerate(value)]


def read_history(value: Any, column: str) -> list[Message]:
    """Return earlier turns that are written as pairs of instruction and response.

    Raises:
        UnusableRowError: something else than a list of pairs of texts.
    """
    pairs = decoded(value)
    if is_missing(pairs) or pairs == "":
        return []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        detail = f"{column} is {shown(pairs)}, expected pairs of instruction and response, or set field_history: ''"
        raise UnusableRowError(Reason.BAD_TYPE, detail)
    return [
        {"role": role, "content": text_of(text, f"{column}[{number}]")}
        for number, pair in enumerate(pairs)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def answers(turn: Message) -> bool:
    """Return whether an assistant turn holds anything to train on: text, or a tool call."""
    return bool(turn.get("content", "").strip()) or any(turn.get(key) for key in _PAYLOADS)


def _turn(turn: Any, name: str, spec: DatasetSpec) -> Message:
    if not isinstance(turn, Mapping):
        raise UnusableRowError(Reason.BAD_TYPE, f"{name} is {shown(turn)}, expected a turn with role and content")
    properties = spec.message_property_mappings
    role_key = properties.get("role", "role" if "role" in turn else "from")
    content_key = properties.get("content", "value" if "value" in turn and "content" not in turn else "content")
    role = turn.get(role_key)
    if not isinstance(role, str) or not role:
        raise UnusableRowError(Reason.BAD_TYPE, f"{name}: {role_key} is {shown(role)}, expected user, assistant, ...")
    content = turn.get(content_key)
    # A table gives every turn the keys of all turns; templates that test for a key must not find it.
    known = {role_key, content_key, "role", "content", "function_call"}
    others = {key: value for key, value in turn.items() if key not in known and value is not None}
    meant = _role(role, f"{name}: {role_key}", spec)
    if meant in _CALLS:
        return {"role": "assistant", "tool_calls": _calls(content, name)} | others
    message: Message = {"role": meant}
    if not is_missing(content):
        message["content"] = _joined_parts(content, name)
    elif meant == "user":
        raise UnusableRowError(Reason.NO_INSTRUCTION, f"{name}: a user turn without {content_key}")
    if turn.get("function_call") is not None and "tool_calls" not in others:
        message["tool_calls"] = _calls(turn["function_call"], name)
    return message | others


def _role(role: str, name: str, spec: DatasetSpec) -> str:
    for meant, names in spec.roles.items():
        if role == meant or role in names:
            return meant
    plain = role.strip().lower()
    meant = plain if plain in _CALLS else _ROLES.get(plain, "")
    if not meant:
        detail = f"{name} is {role!r}: not a known name ({_ACCEPTED}); set roles, such as roles: {{user: [{role}]}}"
        raise UnusableRowError(Reason.UNKNOWN_ROLE, detail)
    return meant


def _calls(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the tool calls of `{"name": ..., "arguments": ...}`, one or a list of them, also as JSON text."""
    found = decoded(value)
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        detail = f"{name} is a call, {shown(value)}: expected JSON with `name` and `arguments`"
        raise UnusableRowError(Reason.BAD_TYPE, detail)
    return [{"type": "function", "function": dict(call)} for call in calls]


def _joined_parts(content: Any, name: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UnusableRowError(Reason.BAD_TYPE, f"{name}: content is {shown(content)}, expected text")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else "text"
        if kind != "text":
            detail = f"{name} holds a part of type {kind!r}: only text is supported"
            raise UnusableRowError(Reason.UNSUPPORTED_CONTENT, detail)
        texts.append(text_of(part.get("text") if isinstance(part, Mapping) else part, f"{name}: text"))
    return "".join(texts)
