"""What a row asks and what it answers, read from any of the accepted row layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from math import isnan
from typing import Any, Literal, NamedTuple

from adg_plugin.config.schema import DatasetSpec

Layout = Literal["alpaca", "messages", "prompt_completion", "sharegpt"]
Message = dict[str, Any]

ACCEPTED_ROWS = (
    "alpaca (instruction, input, output), messages (messages), prompt_completion (prompt, completion), "
    "sharegpt (conversations)"
)
_TURN_COLUMNS = {"messages": ("messages",), "sharegpt": ("conversations", "conversation")}
_ROLES = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("observation", "function_response"), "tool"),
}


class Reason(StrEnum):
    """Why a row is rejected; the value is what files and counts hold."""

    NO_INSTRUCTION = "no_instruction"
    WHITE_SPACE = "only_white_space"
    NO_USER_TURN = "no_user_turn"
    BAD_TYPE = "bad_type"
    UNSUPPORTED_CONTENT = "unsupported_content"
    DUPLICATE = "duplicate"
    TEMPLATE = "template_error"
    BAD_TEXT = "not_unicode"
    NO_SPAN = "no_instruction_tokens"
    TOO_LONG = "prompt_too_long"
    NO_ANSWER = "no_answer"
    NO_GIVEN = "no_given_answers"  # this and the next three: with `answers`, or in `adg score`
    OTHER_PROMPT = "other_prompt"
    FEW_ANSWERS = "too_few_answers"
    LONG_ANSWERS = "too_long"
    FEW_WORDS = "too_few_words"  # this and what follows: by the settings under `filters`
    MANY_WORDS = "too_many_words"
    FEW_ANSWER_WORDS = "too_few_answer_words"
    MANY_ANSWER_WORDS = "too_many_answer_words"
    UNDERSPECIFIED = "underspecified"
    LANGUAGE = "other_language"
    NEAR_DUPLICATE = "near_duplicate"


class UnusableRowError(Exception):
    """A row cannot be used; becomes a `Rejection` where the row's id is known."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Content(NamedTuple):
    """The parts of a row: turns or raw text that ask, the instruction within them, and the reference answer."""

    messages: tuple[Message, ...] | None
    text: str | None
    instruction: str
    input: str
    reference: str


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty: None, or NaN, which pandas writes for None."""
    return value is None or (isinstance(value, float) and isnan(value))


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: white space, control characters and invisible marks only."""
    return all(character.isspace() or not character.isprintable() for character in text)


def find_layout(data: Mapping[str, Any], spec: DatasetSpec) -> Layout | None:
    """Return the layout whose columns a row has, or None. With `type` named, only that one is looked for."""
    candidates = _columns(spec)
    if spec.type != "auto":
        candidates = {spec.type: candidates[spec.type]}
    filled = {name for name, value in data.items() if not is_missing(value)}
    # A table of mixed layouts has every column, and leaves those of other rows empty.
    for names in (filled, data.keys()):
        for layout, columns in candidates.items():
            if any(column in names for column in columns):
                return layout
    return None


def _columns(spec: DatasetSpec) -> dict[Layout, tuple[str, ...]]:
    return {
        "messages": _turn_columns("messages", spec),
        "sharegpt": _turn_columns("sharegpt", spec),
        "alpaca": (spec.field_instruction,),
        "prompt_completion": (spec.field_prompt,),
    }


def unknown_layout(data: Mapping[str, Any], spec: DatasetSpec) -> str:
    """Return the sentence that says why a row's columns are not understood and what to do."""
    columns = ", ".join(map(str, data)) or "none"
    if spec.type != "auto":
        names = " or ".join(f"`{name}`" for name in _columns(spec)[spec.type])
        key = {"alpaca": "field_instruction", "prompt_completion": "field_prompt"}.get(spec.type, "field_messages")
        return f"type is {spec.type}, but there is no column {names} (columns: {columns}): set {key}"
    if "chosen" in data and "rejected" in data:
        hint = "`chosen` and `rejected` are preference pairs: keep the chosen answer, as `prompt` and `completion`"
    elif "input_ids" in data:
        hint = "`input_ids` are tokens already: give the rows before tokenisation"
    elif "text" in data:
        hint = "`text` is finished text, no prompt to ask: split it into `prompt` and `completion`, or into `messages`"
    else:
        hint = "or name your columns, such as field_instruction: question and field_output: answer"
    return f"unknown row format (columns: {columns}). Accepted: {ACCEPTED_ROWS}; {hint}"


def read_content(data: Mapping[str, Any], spec: DatasetSpec, layout: Layout) -> Content:
    """Return what a row of this layout asks and answers.

    Raises:
        UnusableRowError: no instruction, only white space, no user turn, a value of the wrong type, an image.
    """
    if layout == "alpaca":
        return _alpaca(data, spec)
    if layout == "prompt_completion":
        return _prompt_completion(data, spec)
    column = next((name for name in _turn_columns(layout, spec) if not is_missing(data.get(name))), None)
    if column is None:
        raise UnusableRowError(Reason.NO_USER_TURN, f"no turns in {' or '.join(_turn_columns(layout, spec))}")
    turns = _turns(data[column], column, spec)
    if layout == "sharegpt" and turns and turns[0]["role"] != "system":
        turns = _system(data, spec) + turns
    return _conversation(*_before_last_answer(turns))


def read_tools(data: Mapping[str, Any], spec: DatasetSpec) -> tuple[dict[str, Any], ...] | None:
    """Return a row's tools, None where it has none; an UnusableRowError unless a list of objects, or such JSON text."""
    tools = decoded(data.get(spec.field_tools))
    if is_missing(tools) or tools in ([], ""):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnusableRowError(Reason.BAD_TYPE, f"{spec.field_tools} is {_shown(tools)}, expected a list of objects")
    return tuple(tools)


def read_template_kwargs(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row's own chat template arguments; an UnusableRowError unless an object, or JSON text of one."""
    kwargs = decoded(data.get("chat_template_kwargs"))
    if is_missing(kwargs) or kwargs == "":
        return {}
    if not isinstance(kwargs, dict):
        raise UnusableRowError(Reason.BAD_TYPE, f"chat_template_kwargs is {_shown(kwargs)}, expected an object")
    return {name: value for name, value in kwargs.items() if value is not None}


def _turn_columns(layout: str, spec: DatasetSpec) -> tuple[str, ...]:
    if spec.field_messages is not None:
        return (spec.field_messages,)
    own = _TURN_COLUMNS[layout]
    return own if spec.type == "auto" else tuple(dict.fromkeys((*own, "messages", "conversations", "conversation")))


def _alpaca(data: Mapping[str, Any], spec: DatasetSpec) -> Content:
    instruction = _asked(data.get(spec.field_instruction), spec.field_instruction)
    given = data.get(spec.field_input)
    given = "" if is_missing(given) else _text(given, spec.field_input)
    given = "" if is_blank(given) else given
    user = {"role": "user", "content": f"{instruction}\n\n{given}" if given else instruction}
    output = data.get(spec.field_output)
    reference = output if isinstance(output, str) else ""
    return Content((*_system(data, spec), user), None, instruction, given, reference)


def _system(data: Mapping[str, Any], spec: DatasetSpec) -> list[Message]:
    system = data.get(spec.field_system)
    if is_missing(system) or is_blank(_text(system, spec.field_system)):
        return []
    return [{"role": "system", "content": system}]


def _prompt_completion(data: Mapping[str, Any], spec: DatasetSpec) -> Content:
    prompt, completion = data.get(spec.field_prompt), data.get(spec.field_completion)
    completion = "" if is_missing(completion) else completion
    if isinstance(prompt, list):
        turns = _turns(prompt, spec.field_prompt, spec)
        if turns and turns[-1]["role"] == "assistant":
            detail = f"{spec.field_prompt} ends with an assistant turn: move it into {spec.field_completion}"
            raise UnusableRowError(Reason.UNSUPPORTED_CONTENT, detail)
        if completion == "":
            return _conversation(turns, "")
        return _conversation(*_before_last_answer(turns + _turns(completion, spec.field_completion, spec)))
    text = _asked(prompt, spec.field_prompt)
    return Content(None, text, text, "", _text(completion, spec.field_completion))


def _conversation(prompt: list[Message], reference: str) -> Content:
    users = [turn for turn in prompt if turn["role"] == "user"]
    if not users:
        raise UnusableRowError(Reason.NO_USER_TURN, "no user turn before the last assistant turn")
    instruction = _asked(users[-1].get("content"), "the last user turn")
    return Content(tuple(prompt), None, instruction, "", reference)


def _before_last_answer(turns: list[Message]) -> tuple[list[Message], str]:
    """Return the prompt and the reference response: a row that ends with a user or tool turn is all prompt."""
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    asks = [number for number, turn in enumerate(turns) if turn["role"] != "assistant"]
    if not answers or (asks and asks[-1] > answers[-1]):
        return turns, ""
    return turns[: answers[-1]], turns[answers[-1]].get("content", "")


def _turns(value: Any, column: str, spec: DatasetSpec) -> list[Message]:
    value = decoded(value)
    if not isinstance(value, list):
        raise UnusableRowError(Reason.BAD_TYPE, f"{column} is {_shown(value)}, expected a list of turns")
    return [_turn(turn, f"{column}[{number}]", spec.message_property_mappings) for number, turn in enumerate(value)]


def _turn(turn: Any, name: str, properties: Mapping[str, str]) -> Message:
    if not isinstance(turn, Mapping):
        raise UnusableRowError(Reason.BAD_TYPE, f"{name} is {_shown(turn)}, expected a turn with role and content")
    role_key = properties.get("role", "role" if "role" in turn else "from")
    content_key = properties.get("content", "content" if "content" in turn else "value")
    role = turn.get(role_key)
    if not isinstance(role, str) or not role:
        raise UnusableRowError(Reason.BAD_TYPE, f"{name}: {role_key} is {_shown(role)}, expected user, assistant, ...")
    message: Message = {"role": _ROLES.get(role, role)}
    content = turn.get(content_key)
    if not is_missing(content):
        message["content"] = _joined_parts(content, name)
    elif role == "user":
        raise UnusableRowError(Reason.NO_INSTRUCTION, f"{name}: a user turn without {content_key}")
    # Parquet gives every turn the keys of all turns; templates that test for a key must not find it.
    known = {role_key, content_key, *message}
    return message | {key: value for key, value in turn.items() if key not in known and value is not None}


def _joined_parts(content: Any, name: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UnusableRowError(Reason.BAD_TYPE, f"{name}: content is {_shown(content)}, expected text")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else "text"
        if kind != "text":
            detail = f"{name} holds a part of type {kind!r}: only text is supported"
            raise UnusableRowError(Reason.UNSUPPORTED_CONTENT, detail)
        texts.append(_text(part.get("text") if isinstance(part, Mapping) else part, f"{name}: text"))
    return "".join(texts)


def _asked(value: Any, name: str) -> str:
    if is_missing(value) or value == "":
        raise UnusableRowError(Reason.NO_INSTRUCTION, f"{name} is empty")
    if is_blank(_text(value, name)):
        raise UnusableRowError(Reason.WHITE_SPACE, f"{name} is only white space: {value[:20]!r}")
    return str(value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UnusableRowError(Reason.BAD_TYPE, f"{name} is {_shown(value)}, expected text")
    return value


def decoded(value: Any) -> Any:
    """Return lists and objects that a column holds as JSON text, as CSV must; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
