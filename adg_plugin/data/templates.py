"""Row -> prompt text, by the template that training uses, and where the instruction stands in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jinja2

from adg_plugin.data.layouts import Message, Reason, UnusableRowError
from adg_plugin.data.rows import Row
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
# What template code raises on a row it cannot show.
_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, LookupError)


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
    has_own = bool(getattr(tokenizer, "chat_template", None))
    if name == "raw":
        return raw_prompt
    if name in ALPACA:
        return partial(alpaca_prompt, response=ALPACA[name])
    if name == "auto":
        usual = ChatTemplate(tokenizer).render if has_own else alpaca_prompt
        return lambda row: usual(row) if row.text is None else framed("", row.text, "", special_tokens=True)
    if name == "chat" and not has_own:
        whose = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ModelError(
            f"template is chat, but the tokenizer of {whose} has no chat template: "
            "set template to alpaca, chatml, raw, or the path of a .jinja file"
        )
    if name == "chat":
        return ChatTemplate(tokenizer).render
    return ChatTemplate(tokenizer, CHATML if name == "chatml" else _read_jinja(name, tokenizer)).render


def _read_jinja(name: str, tokenizer: Any) -> str:
    path = Path(name).expanduser()
    if path.suffix not in (".jinja", ".jinja2", ".j2"):
        raise ConfigError([f"template is {name!r}: use {ACCEPTED_TEMPLATES}"])
    try:
        source = path.read_text(encoding="utf-8")
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], chat_template=source, tokenize=False)
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError([f"template is {name!r}: cannot be read ({err}): use {ACCEPTED_TEMPLATES}"]) from None
    except jinja2.TemplateSyntaxError as err:
        raise ConfigError([f"template is {name!r}: not Jinja, line {err.lineno}: {err.message}"]) from None
    except _REFUSALS:
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
        own = getattr(tokenizer, "chat_template", None)
        if source is None and isinstance(own, str) and "strftime_now" in own:
            source = own
        if source is not None and "strftime_now" in source:
            source = _FIXED_DATE + source
        self._source = {"chat_template": source} if source is not None else {}
        self._surroundings: dict[str, list[str]] = {}

    def render(self, row: Row) -> PromptText:
        """Return the prompt of a row."""
        messages = _messages(row)
        text = self._apply(messages, row)
        place = self._place(text, messages, row)
        if place is None:
            detail = "the last user turn cannot be found in what the chat template renders"
            raise UnusableRowError(Reason.TEMPLATE, detail)
        start, end = place
        return framed(text[:start], text[start:end], text[end:], special_tokens=False)

    def _apply(self, messages: Sequence[Message], row: Row) -> str:
        tools = list(row.tools) if row.tools else None
        options = {**self._source, **row.chat_template_kwargs}
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=True, tokenize=False, **options
            )
        except _REFUSALS as err:
            raise UnusableRowError(Reason.TEMPLATE, f"the chat template refuses the row: {err}") from None
        return str(text)

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
    """Return a row's system prompt and its other turns; an UnusableRowError where it has tools."""
    if row.tools:
        raise UnusableRowError(Reason.TEMPLATE, f"the {name} template cannot show tools: use a chat template")
    messages = _messages(row)
    if messages[0]["role"] in ("system", "developer"):
        return messages[0].get("content", ""), messages[1:]
    return "", messages
