"""What a check found out, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from adg_plugin.errors import ADGError, ConfigError

Status = Literal["ok", "note", "warning", "failed"]
Look = Callable[[], "Iterable[Check] | None"]  # None: all is well, and not worth a line


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


@dataclass(frozen=True, slots=True)
class Section:
    """Checks that belong together."""

    title: str
    checks: tuple[Check, ...]

    def failed(self) -> int:
        """Return how many checks failed."""
        return sum(check.status == "failed" for check in self.checks)


def failures(name: str, err: ADGError) -> tuple[Check, ...]:
    """Return a failed check for each problem that an error names; their texts hold the fix."""
    problems = err.problems if isinstance(err, ConfigError) else [str(err)]
    return tuple(Check(name, "failed", problem) for problem in problems)


def guarded(name: str, look: Look) -> tuple[Check, ...]:
    """Return what `look` finds; an error of any kind is one more finding, after those that came before it."""
    found: list[Check] = []
    try:
        found.extend(look() or ())
    except ADGError as err:
        found.extend(failures(name, err))
    except Exception as err:  # whatever is broken here is what the user wants to know
        found.append(Check(name, "failed", f"the check itself failed: {type(err).__name__}: {err}"))
    return tuple(found)
