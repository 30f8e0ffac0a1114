"""The errors that a user may meet; each message names the key or row, its value and the fix."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class ADGError(Exception):
    """Base of every error this package raises on purpose; the CLI prints it and exits with `exit_code`."""

    exit_code = 1


class ConfigError(ADGError):
    """The configuration is wrong; `problems` holds every mistake found, one sentence each."""

    exit_code = 2

    def __init__(self, problems: list[str], *, source: str = "") -> None:
        self.problems = problems
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
