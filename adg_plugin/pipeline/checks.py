"""What a selection refuses before a model loads: settings that these processes cannot carry out, other answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, StoreError
from adg_plugin.pipeline.ranks import Team
from adg_plugin.selectors.registry import selector
from adg_plugin.store import RunReader, keys


def refuse_unfit(config: ADGConfig, team: Team) -> None:
    """Raise a ConfigError naming the settings with which these processes cannot make a selection."""
    if config.budget_per_dataset is not None:
        raise ConfigError(["budget_per_dataset is set: only Axolotl selects from each data set by itself; use budget"])
    refuse_for_teams(config, team)


def refuse_for_teams(config: ADGConfig, team: Team) -> None:
    """Raise a ConfigError with every setting under which these processes cannot share the work."""
    problems = []
    if config.executor == "ray":
        config.refuse_other_methods("only ADG samples on Ray's workers")
    if team.size > 1 and not selector(config.method).shares_work(config):
        problems.append(f"method is {config.method!r}: one process measures; select first with `adg select` in one")
    if team.size > 1 and config.executor != "inline":
        problems.append(f"executor is {config.executor!r}: start it in one process, its workers are the team")
    if team.size > 1 and ":" in config.device:
        problems.append(f"device is {config.device!r}: each rank takes its own; use auto")
    if problems:
        raise ConfigError(problems)


def refuse_other_answers(run: RunReader, config: ADGConfig, recipe: Mapping[str, Any]) -> None:
    """Raise a StoreError naming what differs where a run folder's answers are of another model or other settings."""
    if other := other_answers(run, config, recipe):
        back = "" if "version" in other else "go back to that, "
        raise StoreError(
            f"run folder {run.path} was made with {', '.join(other.values())}: {back}give another folder, or delete "
            "this one"
        )


def other_answers(run: RunReader, config: ADGConfig, recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return how the answers in a run folder came of other settings or another model, by setting."""
    stored = run.read_config()
    other = keys.differences(stored.get("recipe", recipe), recipe)
    if "model" in other:
        model = f"model {stored['config']['model']!r} (now {config.model!r}, whose weights differ)"
        other = {"model": model, **{name: text for name, text in other.items() if name != "model"}}
    return other
