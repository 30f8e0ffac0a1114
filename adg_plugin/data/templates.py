"""Row -> prompt text, by the template that training uses, and where the instruction stands in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jinja2

from adg_plugin.data.cells import Reason, UnusableRowError
from adg_plugin.data.rows import Row
from adg_plugin.data.time_limit import TimeLimit
from adg_plugin.data.turns import Message
from adg_plugin.errors import ConfigError, ModelError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The Alpaca prompts, and what stands before an answer: as Axolotl trains, and as Stanford's and the paper's code do.
ALPACA = {"alpaca": "### Response:\n", "alpaca-paper": "### Response:"}
ACCEPTED_TEMPLATES = "auto, chat, alpaca, alpaca-paper, chatml, raw, or the path of a .jinja file"

_PREAMBLE = "Below is an instruction that describes a task"
_PREAMBLE_END = "Write a response that appropriately completes the request."
_SENTINEL = "904172635081627493"  # digits: a template may change case or strip marks
_CACHED_SURROUNDINGS = 1024
# What templates that print today's date get (26 July 2024 is Llama 3's own default): else every prompt, and with it
# every answer, would be another one tomorrow. In Jinja, as templates are given no functions.
_DATE_PARTS = {
    "%Y": "2024", "%y": "24", "%m": "07", "%B": "July", "%b": "Jul", "%d": "26", "%e": "26", "%-d": "26", "%j": "208",
    "%A": "Friday", "%a": "Fri", "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM",
}  # fmt: skip
_FIXED_DATE = "{%- macro strftime_now(format) -%}{{ format"
_FIXED_DATE += "".join(f" | replace('{sign}', '{text}')" for sign, text in _DATE_PARTS.items())
_FIXED_DATE += " }}{%- endmacro -%}"
_TIME_LIMIT = TimeLimit(10.0)  # seconds that a template may take for a row; most take less than a thousandth
_LONGEST_PROMPT = 1 << 26  # characters


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt as text; `[start, end)` are the characters of the instruction, without white space around it."""

    text: str
    start: int
    end: int
    cut_limit: int  # cutting must leave more than this: [start, cut_limit) belongs to the template's frame
    special_tokens: bool  # whether the tokenizer's own leading tokens (BOS) come first


# Gives the prompt of a row; raises an UnusableRowError where it cannot show the row.
Template: TypeAlias = Callable[[Row], PromptText]


def make_template(name: str, tokenizer: Any) -> Template:
    """Return the template that a configuration names.

    Args:
        name: `auto` (the tokenizer's chat template, else alpaca), `chat`, `alpaca`, `alpaca-paper`, `chatml`, `raw`, or
            a .jinja file.

    Raises:
        ConfigError: no such template or file, or it is not Jinja.
        ModelError: `chat`, and the tokenizer has no chat template.
    """
    if name == "raw":
        return raw_prompt
    if name in ALPACA:
        return partial(alpaca_prompt, response=ALPACA[name])
    chat = _chat_template(name, tokenizer)
    usual = alpaca_prompt if chat is None else chat.render
    if name == "auto":
        return lambda row: usual(row) if row.text is None else framed("", row.text, "", special_tokens=True)
    return usual


def make_trained(name: str, tokenizer: Any) -> Callable[[Row], str]:
    """Return what gives a row's prompt with its answer, as a trainer renders them; see `make_template`."""
    prompt = make_template(name, tokenizer)
    chat = None if name == "raw" or name in ALPACA else _chat_template(name, tokenizer)

    def trained(row: Row) -> str:
        if chat is None or (name == "auto" and row.text is not None):
            return prompt(row).text + row.reference
        return chat.trained(row)

    return trained


def _chat_template(name: str, tokenizer: Any) -> ChatTemplate | None:
    """Return the chat template of that name; None for `auto` where the tokenizer has none."""
    has_own = bool(getattr(tokenizer, "chat_template", None))
    if name == "auto":
        return ChatTemplate(tokenizer) if has_own else None
    if name == "chat" and not has_own:
        whose = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ModelError(
            f"template is chat, but the tokenizer of {whose} has no chat template: "
            "set template to alpaca, chatml, raw, or the path of a .jinja file"
        )
    if name == "chat":
        return ChatTemplate(tokenizer)
    return ChatTemplate(tokenizer, CHATML if name == "chatml" else _read_jinja(name, tokenizer))


def _read_jinja(name: str, tokenizer: Any) -> str:
    path = Path(name).expanduser()
    if path.suffix not in (".jinja", ".jinja2", ".j2"):
        raise ConfigError([f"template is {name!r}: use {ACCEPTED_TEMPLATES}"])
    try:
        source = path.read_text(encoding="utf-8")
        turns = [{"role": "user", "content": "?"}]
        _TIME_LIMIT(lambda: tokenizer.apply_chat_template(turns, chat_template=source, tokenize=False))
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError([f"template is {name!r}: cannot be read ({err}): use {ACCEPTED_TEMPLATES}"]) from None
    except jinja2.TemplateSyntaxError as err:
        raise ConfigError([f"template is {name!r}: not Jinja, line {err.lineno}: {err.message}"]) from None
    except Exception:
        pass  # it wants another kind of row than this one
    return source


def raw_prompt(row: Row) -> PromptText:
    """Return the instruction itself. A system turn goes before it, an alpaca input after it, each after a blank line.

    Earlier turns would lose their roles, so such rows are rejected.
    """
    system, turns = _system_and_turns(row, "raw")
    if len(turns) != 1:
        raise UnusableRowError(Reason.TEMPLATE, f"the raw template shows one user turn, the row has {len(turns)} turns")
    return framed(f"{system}\n\n" if system else "", turns[0]["content"], "", special_tokens=True)


def alpaca_prompt(row: Row, response: str = ALPACA["alpaca"]) -> PromptText:
    """Return the Alpaca prompt: Stanford's text; by default with the line break that Axolotl adds after `response`.

    A system turn takes the place of the opening sentences, as in Axolotl. Earlier turns come as further pairs of
    `### Instruction:` and `### Response:`; turns that do not alternate, tools and tool turns are rejected.
    """
    system, turns = _system_and_turns(row, "alpaca")
    for number, turn in enumerate(turns):
        if turn["role"] != ("assistant" if number % 2 else "user"):
            detail = f"the alpaca template needs user and assistant in turn: turn {number + 1} is {turn['role']}"
            raise UnusableRowError(Reason.TEMPLATE, detail)
    if len(turns) % 2 == 0:
        raise UnusableRowError(Reason.TEMPLATE, "the alpaca template needs a user turn at the end")
    more = ", paired with an input that provides further context" if row.input else ""
    head = (system or f"{_PREAMBLE}{more}. {_PREAMBLE_END}") + "\n\n"
    for user, assistant in zip(turns[:-1:2], turns[1::2], strict=True):
        head += f"### Instruction:\n{user['content']}\n\n{response}{assistant.get('content', '')}\n\n"
    frame = f"{row.instruction}\n\n### Input:\n" if row.input else ""
    asked = frame + (row.input or row.instruction)
    return framed(f"{head}### Instruction:\n", asked, f"\n\n{response}", special_tokens=True, kept=len(frame))


class ChatTemplate:
    """A Jinja chat template: the tokenizer's, or another one.

    The instruction is found by rendering the same row with a sentinel in its place: what stands before and after the
    sentinel stands before and after the instruction, however often its text occurs elsewhere or is stripped.
    """

    def __init__(self, tokenizer: Any, source: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self._surroundings: dict[str, list[str]] = {}

    def render(self, row: Row) -> PromptText:
        """Return the prompt of a row."""
        messages = _messages(row)
        text = self._apply(messages, row)
        self._check_calls(messages, text, row)
        place = self._place(text, messages, row)
        if place is None:
            detail = "the last user turn cannot be found in what the chat template renders"
            raise UnusableRowError(Reason.TEMPLATE, detail)
        start, end = place
        return framed(text[:start], text[start:end], text[end:], special_tokens=False)

    def trained(self, row: Row) -> str:
        """Return a row's prompt with its answer, as a trainer renders them; `render` has accepted the row."""
        return self._apply([*_messages(row), *([row.answer] if row.answer else [])], row, prompt_only=False)

    def _check_calls(self, messages: Sequence[Message], text: str, row: Row) -> None:
        """Refuse a row whose tool calls the template leaves out, as templates without tools do in silence."""
        turns = [*messages, *([row.answer] if row.answer else [])]
        for number, turn in enumerate(turns):
            if not turn.get("tool_calls"):
                continue
            of_prompt = number < len(messages)
            shown = turns[: len(messages)] if of_prompt else turns
            without = {"content": "", **{key: value for key, value in turn.items() if key != "tool_calls"}}
            whole = text if of_prompt else self._apply(shown, row, prompt_only=False)
            try:
                other = self._apply([*shown[:number], without, *shown[number + 1 :]], row, prompt_only=of_prompt)
            except UnusableRowError:
                continue  # so the template looks at the call
            if other == whole:
                detail = f"the chat template does not show the tool call of turn {number + 1}: use a template that does"
                raise UnusableRowError(Reason.TEMPLATE, detail)

    def _apply(self, messages: Sequence[Message], row: Row, *, prompt_only: bool = True) -> str:
        tools = list(row.tools) if row.tools else None
        options = {"tokenize": False, "chat_template": self._template(tools), **row.chat_template_kwargs}
        apply = partial(self._tokenizer.apply_chat_template, tools=tools, add_generation_prompt=prompt_only, **options)
        try:
            text = str(_TIME_LIMIT(lambda: apply(list(messages))))
        except TimeoutError:
            detail = f"the chat template takes longer than {_TIME_LIMIT.seconds:.0f} s for the row"
            raise UnusableRowError(Reason.TEMPLATE, detail) from None
        except Exception as err:  # template code may raise anything
            raise UnusableRowError(Reason.TEMPLATE, f"the chat template refuses the row: {err}") from None
        if len(text) > _LONGEST_PROMPT:
            detail = f"the chat template gives {len(text):,} characters for the row, {_LONGEST_PROMPT:,} is the most"
            raise UnusableRowError(Reason.TEMPLATE, detail)
        return text

    def _template(self, tools: list[dict[str, Any]] | None) -> str:
        source = str(self._source or self._tokenizer.get_chat_template(tools=tools))  # of several, that for tools
        return _FIXED_DATE + source if "strftime_now" in source else source

    def _place(self, text: str, messages: Sequence[Message], row: Row) -> tuple[int, int] | None:
        last = max(number for number, turn in enumerate(messages) if turn["role"] == "user")
        content = messages[last]["content"]
        asked = [*messages[:last], {**messages[last], "content": _SENTINEL}, *messages[last + 1 :]]
        # Rows with a long history share their surroundings with no other row.
        key = json.dumps([asked, row.tools, row.chat_template_kwargs], default=str) if len(messages) <= 2 else ""
        known = self._surroundings.get(key)
        place = _between(text, content, known) if known else None
        if place is None:
            parts = self._apply(asked, row).split(_SENTINEL)
            if key and len(self._surroundings) < _CACHED_SURROUNDINGS:
                self._surroundings[key] = parts
            place = _between(text, content, parts)
        stripped = content.strip()
        # The template looks into the content, as some do for tool results.
        if place is None and text.count(stripped) == 1:
            start = text.index(stripped)
            place = start, start + len(stripped)
        return place


def _between(text: str, content: str, parts: Sequence[str]) -> tuple[int, int] | None:
    """Return where the content stands in `text`, given what surrounds each of its places."""
    for shown in (content, content.strip(), content.rstrip(), content.lstrip()):
        if len(parts) > 1 and shown.join(parts) == text:
            end = len(text) - len(parts[-1])
            return end - len(shown), end
    if len(parts) != 2:
        return None
    start, end = len(parts[0]), len(text) - len(parts[1])
    if start >= end or not (text.startswith(parts[0]) and text.endswith(parts[1])) or text[start:end].isspace():
        return None
    core = content.strip()  # altered, or with something added that depends on it
    if text.count(core, start, end) == 1:
        start = text.index(core, start)
        end = start + len(core)
    return start, end


def framed(before: str, instruction: str, after: str, *, special_tokens: bool, kept: int = 0) -> PromptText:
    """Return the joined text; white space around it may merge with the template's tokens, so is left out.

    The first `kept` characters of the instruction are never cut.
    """
    start = len(before) + len(instruction) - len(instruction.lstrip())
    end = len(before) + len(instruction.rstrip())
    return PromptText(before + instruction + after, start, end, max(start, len(before) + kept), special_tokens)


def _messages(row: Row) -> tuple[Message, ...]:
    return row.messages if row.messages is not None else ({"role": "user", "content": row.instruction},)


def _system_and_turns(row: Row, name: str) -> tuple[str, tuple[Message, ...]]:
    """Return a row's system prompt and its other turns; an UnusableRowError where it has tools, or calls one."""
    turns = [*(row.messages or ()), *([row.answer] if row.answer else [])]
    if row.tools or any(turn.get("tool_calls") for turn in turns):
        raise UnusableRowError(Reason.TEMPLATE, f"the {name} template cannot show tools: use a chat template")
    messages = _messages(row)
    if messages[0]["role"] in ("system", "developer"):
        return messages[0].get("content", ""), messages[1:]
    return "", messages
