"""`adg,adg:rank,random` -> the settings of each method that is to choose from one run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from adg_plugin.config.groups import ScoreForm
from adg_plugin.config.schema import ADGConfig
from adg_plugin.config.values import typed_value
from adg_plugin.errors import ConfigError
from adg_plugin.selectors.base import Selector
from adg_plugin.selectors.registry import built_in_selectors, selector

DEFAULT_METHODS = ("adg", "random", "longest", "zip", "ifd")


@dataclass(frozen=True, slots=True)
class Plan:
    """A method that is to choose.

    Attributes:
        name: as it is written in short, `adg:rank`, `adg:weight=0`.
        changes: of the settings that all methods share.
        config: those settings with `method` and the changes.
        selector: that `method` names.
    """

    name: str
    changes: dict[str, Any]
    config: ADGConfig
    selector: Selector


def split_methods(text: str) -> list[str]:
    """Return the methods of a list with commas; `KEY=VALUE` after a comma belongs to the method before it."""
    found: list[str] = []
    for piece in text.split(","):
        if found and "=" in piece.partition(":")[0]:
            found[-1] += f",{piece.strip()}"
        elif piece.strip():
            found.append(piece.strip())
    return found


def planned(config: ADGConfig, methods: Sequence[str]) -> tuple[Plan, ...]:
    """Return what is to choose, in the order given, none twice.

    Args:
        methods: `METHOD`, `METHOD:KEY=VALUE,KEY=VALUE` or `adg:FORM`, a form of `score`.

    Raises:
        ConfigError: with every problem found, each with the method that has it.
    """
    plans: dict[str, Plan] = {}
    problems = [] if methods else [f"no method is named: use some, such as {','.join(DEFAULT_METHODS)}"]
    for text in methods:
        try:
            plan = _plan(config, text)
        except ConfigError as err:
            problems += [f"{text}: {problem}" for problem in err.problems]
        else:
            plans.setdefault(plan.name, plan)
    if problems:
        raise ConfigError(problems, source="--methods")
    return tuple(plans.values())


def _plan(config: ADGConfig, text: str) -> Plan:
    method, colon, rest = text.partition(":")
    config = config.updated(method=method.strip())
    chooser = selector(config.method)
    changes = _changes(chooser, rest) if colon else {}
    problems = [refusal for key, value in changes.items() if (refusal := _refusal(chooser, key, value))]
    if problems:
        raise ConfigError(problems)
    config = config.updated(**changes) if changes else config
    changes = {key: getattr(config, key) for key in changes}  # 0 and 0.0 are one weight
    written = ",".join(_written(key, value) for key, value in changes.items())
    return Plan(f"{config.method}:{written}" if written else config.method, changes, config, chooser)


def _changes(chooser: Selector, text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    forms = get_args(ScoreForm) if "score" in chooser.settings else ()
    for piece in text.split(","):
        key, equals, value = (part.strip() for part in piece.partition("="))
        if key in forms and not equals:
            key, value = "score", key
        elif not (key and value):
            short = f", or one of {', '.join(forms)}" if forms else ""
            raise ConfigError([f"{piece.strip()!r} is no setting: write METHOD:KEY=VALUE, such as adg:weight=0{short}"])
        if key in found:
            raise ConfigError([f"{key} is given twice: keep one"])
        found[key] = typed_value(value)
    return found


def _refusal(chooser: Selector, key: str, value: Any) -> str | None:
    """Return why a method cannot have a setting of its own; None where it can, or where the schema will say."""
    own = chooser.settings
    if key not in ADGConfig.model_fields or key in own:
        return None
    if key == "budget":
        return f"budget is {value!r}: all methods choose as many rows; use --set budget={value}"
    if key != "seed" and any(key in other.settings for other in built_in_selectors()):
        looks = f"it looks at {', '.join(own)}" if own else "it looks at no setting but the budget"
        return f"{key} is {value!r}: {chooser.name} does not look at it, {looks}"
    return f"{key} is {value!r}: all methods share one pool and its answers; use a run folder of its own (--set, --out)"


def _written(key: str, value: Any) -> str:
    if key == "score":
        return str(value)
    if isinstance(value, float):
        return f"{key}={value:g}"
    return f"{key}={'none' if value is None else value}"
