"""What a check found out, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, ParamSpec

from adg_plugin.errors import ADGError, ConfigError

Status = Literal["ok", "note", "warning", "failed"]
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what, in a word or two.
        status: `note` is worth knowing, `warning` may hurt, `failed` stops a run or spoils it.
        message: what was found.
        fix: what to do about it, a command where there is one.
    """

    name: str
    status: Status
    message: str
    fix: str = ""


def failures(name: str, err: ADGError) -> tuple[Check, ...]:
    """Return a failed check for each problem that an error names; their texts hold the fix."""
    problems = err.problems if isinstance(err, ConfigError) else [str(err)]
    return tuple(Check(name, "failed", problem) for problem in problems)


def guarded(name: str, look: Callable[P, Iterable[Check] | None], *args: P.args, **kwargs: P.kwargs) -> Iterator[Check]:
    """Yield what `look` finds; None: all is well. An error of any kind is one more finding, after the others."""
    try:
        yield from look(*args, **kwargs) or ()
    except ADGError as err:
        yield from failures(name, err)
    except Exception as err:  # whatever is broken here is what the user wants to know
        yield Check(name, "failed", f"the check itself failed: {type(err).__name__}: {err}")
