"""What a row asks and what it answers, read from any of the accepted row layouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.cells import Reason, UnusableRowError, decoded, is_blank, is_missing, shown, text_of
from adg_plugin.data.turns import Message, answers, read_history, read_turns

Layout = Literal["alpaca", "messages", "prompt_completion", "sharegpt"]

ACCEPTED_ROWS = (
    "alpaca (instruction, input, output), messages (messages), prompt_completion (prompt, completion), "
    "sharegpt (conversations)"
)
_TURN_COLUMNS = {"messages": ("messages",), "sharegpt": ("conversations", "conversation")}
# Arguments of `apply_chat_template` that are not the row's to set: they are the trainer's, or change what comes out.
_RESERVED_KWARGS = {
    "conversation",
    "messages",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
}


class Content(NamedTuple):
    """The parts of a row: turns or raw text that ask, the instruction within them, and the answer.

    Attributes:
        answer: the last assistant turn, whole; None where there is nothing to train on.
        completion_start: how many of `messages` are the row's prompt; those behind belong to its completion, as the
            answer does.
    """

    messages: tuple[Message, ...] | None
    text: str | None
    instruction: str
    input: str
    answer: Message | None
    completion_start: int = 0


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


def layout_columns(spec: DatasetSpec) -> set[str]:
    """Return the columns of which any makes an object a row."""
    found = _columns(spec) if spec.type == "auto" else {spec.type: _columns(spec)[spec.type]}
    return {column for columns in found.values() for column in columns}


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
    return _conversation(_with_system(read_turns(data[column], column, spec), data, spec))


def read_tools(data: Mapping[str, Any], spec: DatasetSpec) -> tuple[dict[str, Any], ...] | None:
    """Return a row's tools, None where it has none; an UnusableRowError unless a list of objects, or such JSON text."""
    tools = decoded(data.get(spec.field_tools))
    if is_missing(tools) or tools in ([], ""):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnusableRowError(Reason.BAD_TYPE, f"{spec.field_tools} is {shown(tools)}, expected a list of objects")
    return tuple(tools)


def read_template_kwargs(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row's own chat template arguments; an UnusableRowError unless an object, or JSON text of one."""
    kwargs = decoded(data.get("chat_template_kwargs"))
    if is_missing(kwargs) or kwargs == "":
        return {}
    if not isinstance(kwargs, dict):
        raise UnusableRowError(Reason.BAD_TYPE, f"chat_template_kwargs is {shown(kwargs)}, expected an object")
    if reserved := sorted(_RESERVED_KWARGS.intersection(kwargs)):
        detail = f"chat_template_kwargs has {', '.join(reserved)}: not for a row to set, leave it out"
        raise UnusableRowError(Reason.TEMPLATE, detail)
    return {name: value for name, value in kwargs.items() if value is not None}


def _turn_columns(layout: str, spec: DatasetSpec) -> tuple[str, ...]:
    if spec.field_messages is not None:
        return (spec.field_messages,)
    own = _TURN_COLUMNS[layout]
    return own if spec.type == "auto" else tuple(dict.fromkeys((*own, "messages", "conversations", "conversation")))


def _alpaca(data: Mapping[str, Any], spec: DatasetSpec) -> Content:
    instruction = _asked(data.get(spec.field_instruction), spec.field_instruction)
    given = data.get(spec.field_input)
    given = "" if is_missing(given) else text_of(given, spec.field_input)
    given = "" if is_blank(given) else given
    user = {"role": "user", "content": f"{instruction}\n\n{given}" if given else instruction}
    earlier = read_history(data.get(spec.field_history), spec.field_history)
    turns = _with_system([*earlier, user], data, spec)
    output = data.get(spec.field_output)
    return Content(
        tuple(turns), None, instruction, given, _answer(output if isinstance(output, str) else ""), len(turns)
    )


def _answer(text: str) -> Message | None:
    return {"role": "assistant", "content": text} if text.strip() else None


def _with_system(turns: list[Message], data: Mapping[str, Any], spec: DatasetSpec) -> list[Message]:
    """Return the turns behind the system prompt of a column of its own, unless they begin with one."""
    system = _system(data, spec)
    return (
        [{"role": "system", "content": system}, *turns]
        if system and turns[:1] and turns[0]["role"] != "system"
        else turns
    )


def _system(data: Mapping[str, Any], spec: DatasetSpec) -> str:
    system = data.get(spec.field_system)
    return "" if is_missing(system) or is_blank(text_of(system, spec.field_system)) else str(system)


def _prompt_completion(data: Mapping[str, Any], spec: DatasetSpec) -> Content:
    prompt, completion = data.get(spec.field_prompt), data.get(spec.field_completion)
    completion = "" if is_missing(completion) else completion
    if isinstance(prompt, list):
        turns = _with_system(read_turns(prompt, spec.field_prompt, spec), data, spec)
        if turns and turns[-1]["role"] == "assistant":
            detail = f"{spec.field_prompt} ends with an assistant turn: move it into {spec.field_completion}"
            raise UnusableRowError(Reason.UNSUPPORTED_CONTENT, detail)
        rest = [] if completion == "" else read_turns(completion, spec.field_completion, spec)
        return _conversation(turns + rest, len(turns))
    text = _asked(prompt, spec.field_prompt)
    if _system(data, spec):
        detail = (
            f"{spec.field_system} stands beside a prompt that is text, in which it has no place: write the prompt as "
            "turns, or set field_system: ''"
        )
        raise UnusableRowError(Reason.UNSUPPORTED_CONTENT, detail)
    return Content(None, text, text, "", _answer(text_of(completion, spec.field_completion)))


def _conversation(turns: list[Message], completion_start: int | None = None) -> Content:
    """Return the parts of a conversation: what stands before its last answer asks.

    A conversation that ends with a user or tool turn is all prompt.

    Args:
        completion_start: number of turns that are a prompt by themselves; by default all before the last answer.
    """
    replies = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    asks = [number for number, turn in enumerate(turns) if turn["role"] != "assistant"]
    last = replies[-1] if replies and (not asks or asks[-1] < replies[-1]) else len(turns)
    prompt, answer = turns[:last], turns[last] if last < len(turns) else None
    users = [turn for turn in prompt if turn["role"] == "user"]
    if not users:
        raise UnusableRowError(Reason.NO_USER_TURN, "no user turn before the last assistant turn")
    instruction = _asked(users[-1].get("content"), "the last user turn")
    if answer is not None and not answers(answer):
        answer = None
    start = len(prompt) if completion_start is None else min(completion_start, len(prompt))
    return Content(tuple(prompt), None, instruction, "", answer, start)


def _asked(value: Any, name: str) -> str:
    if is_missing(value) or value == "":
        raise UnusableRowError(Reason.NO_INSTRUCTION, f"{name} is empty")
    if is_blank(text_of(value, name)):
        raise UnusableRowError(Reason.WHITE_SPACE, f"{name} is only white space: {value[:20]!r}")
    return str(value)
