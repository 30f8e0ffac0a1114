"""The errors that a user may meet; each message names the key or row, its value and the fix."""

from __future__ import annotations

import json
import re
from importlib import import_module
from types import ModuleType

_USER = re.compile(r"(?<=://)[^/?#\s]*@")
_URL = re.compile(r"(?<=://)[^\s'\"<>]+")
_SIGNATURE = re.compile(  # of S3, Google Cloud, Azure, CloudFront and the like
    r"([?&;][^=&;#]*(?:sig|token|key|secret|passw|pwd|credential|auth|policy)[^=&;#]*=)[^&;#]*", re.IGNORECASE
)


def redacted(text: str) -> str:
    """Return a text whose URLs give no access: user and password are cut out, signatures and keys are `***`."""
    if "://" not in text:
        return text
    return _URL.sub(lambda url: _SIGNATURE.sub(r"\1***", url[0]), _USER.sub("", text))


# What drives a terminal, turns the order of a line around, or stands in it unseen; line breaks and tabs are none of it.
# Emoji and some scripts join their letters by U+200C and U+200D, which are hidden only next to ASCII.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
    r"|(?<![^\x00-\x7f\u200c\u200d])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f\u200c\u200d])"
)


def visible(text: str) -> str:
    r"""Return a text for a terminal: control characters, bidi marks and what is unseen as escapes such as `\u001b`.

    Within the strings of a JSON text these are JSON's own escapes, so it means the same.
    """
    return _HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


class ADGError(Exception):
    """Base of every error this package raises on purpose; the CLI prints it and exits with `exit_code`.

    Its text is `redacted` and, whoever prints it, `visible`: it may quote rows, file names and what servers say.
    """

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(redacted(text))

    def __str__(self) -> str:
        return visible(super().__str__())


class ConfigError(ADGError):
    """The configuration is wrong; `problems` holds every mistake found, one sentence each."""

    exit_code = 2

    def __init__(self, problems: list[str], *, source: str = "") -> None:
        self.problems = problems = [redacted(problem) for problem in problems]
        head = f"{source}: " if source else ""
        if len(problems) == 1:
            text = head + problems[0]
        else:
            text = "\n".join([f"{head}{len(problems)} problems", *(f"  - {p}" for p in problems)])
        super().__init__(text)


class DataError(ADGError):
    """A data set cannot be read, or has no usable row."""

    exit_code = 2


class ModelError(ADGError):
    """The backbone or its tokenizer cannot be used as configured."""

    exit_code = 2


class StoreError(ADGError):
    """The run folder is in use, unwritable, or belongs to something else."""

    exit_code = 3


class NumericalError(ADGError):
    """So many rows gave NaN or infinite states that going on would be meaningless."""

    exit_code = 4


class ServerError(ADGError):
    """A server does not respond, or refuses every row."""

    exit_code = 6


class OutOfMemoryError(ADGError):
    """Not even one row at a time fits into memory."""

    exit_code = 5


class MissingExtraError(ADGError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    exit_code = 2


def first_line(err: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class where it has none."""
    return (str(err).strip() or type(err).__name__).splitlines()[0]


def need(module: str, *, extra: str, why: str) -> ModuleType:
    """Return the imported optional `module`, or raise naming the extra that brings it.

    Raises:
        MissingExtraError: `module` is not installed.
        ModuleNotFoundError: it is installed but one of its own imports is missing.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as err:
        if err.name != module.partition(".")[0]:
            raise  # installed but broken: show the real cause
        raise MissingExtraError(f"{why} needs `{module}`: pip install 'adg-plugin[{extra}]'") from err
