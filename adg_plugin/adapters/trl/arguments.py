"""The arguments of `trl sft` and of the selection, from one YAML file and one command line; all mistakes at once."""

from __future__ import annotations

import difflib
import os
from argparse import Action, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from adg_plugin.adapters.trl.contract import trl
from adg_plugin.config.files import load_yaml, override
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError

_PREFIX = "adg_"
RUN_FOLDER = "adg_run_folder"  # of `adg sft`: train on the rows of a finished run folder, select nothing
_OF_LAUNCHER = ("accelerate_config",)  # TRL's own name for accelerate's --config_file


@dataclass(frozen=True, slots=True)
class Given:
    """What was written, before anything is made of it.

    Attributes:
        adg: the `adg:` block with the flags `--adg_*` on top.
        trainer: the keys of `trl sft` in the YAML, untouched.
        launch: the keys of `accelerate launch` in the YAML.
        flags: what else stood on the command line.
        run_folder: a finished run folder to train on.
        source: the YAML file, for error texts.
    """

    adg: dict[str, Any]
    trainer: dict[str, Any]
    launch: dict[str, Any]
    env: dict[str, Any]
    flags: list[str]
    arguments: list[str]
    run_folder: str | None
    source: str


@dataclass(frozen=True, slots=True)
class Request:
    """A checked command.

    Attributes:
        adg: the selection's settings as written, without those taken over from the trainer.
        script, training, model, mixture: TRL's ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig.
        launch: arguments for `accelerate launch`.
        passed: the command line without accelerate's part.
    """

    adg: dict[str, Any]
    script: Any
    training: Any
    model: Any
    mixture: Any
    launch: list[str]
    passed: list[str]
    given: Given


def read_command(arguments: Sequence[str]) -> Given:
    """Return what `[--config FILE.yaml] [--adg_KEY VALUE] [...]` gives; a ConfigError if it cannot be read."""
    flags = list(arguments)
    if flags and not flags[0].startswith("-"):
        raise ConfigError([f"{flags[0]}: adg sft takes flags, as trl sft does: write --config {flags[0]}"])
    path = _taken(flags, "--config")
    found: list[tuple[str, str]] = []
    problems: list[str] = []
    rest: list[str] = []
    while flags:
        flag = flags.pop(0)
        name, equals, value = flag.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not flag.startswith("--") or not name.startswith(_PREFIX):
            rest.append(flag)
            continue
        if not equals:
            value = flags.pop(0) if flags and not flags[0].startswith("--") else "true"
        found.append((name, value))
    given = split(load_yaml(path) if path else {}, source=path or "")
    block, folder = given.adg, given.run_folder
    for name, value in found:
        if name == RUN_FOLDER:
            folder = value
            continue
        try:
            block = override(block, f"{name.removeprefix(_PREFIX)}={value}")
        except ValueError as err:
            problems.append(f"--{name} {value}: {err}")
    if folder and block:
        problems.append(
            f"{RUN_FOLDER} is {folder!r} and adg.{next(iter(block))} is set: the rows are chosen already; leave one out"
        )
    if problems:
        raise ConfigError(problems)
    return replace(given, adg=block, flags=rest, arguments=list(arguments), run_folder=folder)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Given:
    """Return what a recipe holds after `--set KEY=VALUE`; a bare key is the trainer's where both know it.

    Raises:
        ConfigError: with every override that cannot be applied.
    """
    data = load_yaml(path)
    problems = []
    for text in overrides:
        head = text.partition("=")[0].split(".")[0]
        of_selection = head == "adg" or (head in ADGConfig.model_fields and head not in _known(_parser()))
        try:
            if of_selection:
                data["adg"] = override(data.get("adg") or {}, text)
            else:
                data = override(data, text)
        except ValueError as err:
            problems.append(f"--set {text}: {err}")
    if problems:
        raise ConfigError(problems, source=str(path))
    return split(data, source=str(path))


def split(data: Mapping[str, Any], *, source: str) -> Given:
    """Return a YAML's parts, unknown keys with the trainer's; a ConfigError if `adg` or `env` is no mapping."""
    rest = dict(data)
    block, env = rest.pop("adg", None) or {}, rest.pop("env", None) or {}
    for name, part in (("adg", block), ("env", env)):
        if not isinstance(part, dict):
            raise ConfigError([f"{name} is {part!r}: write `key: value` lines under it"], source=source)
    folder = rest.pop(RUN_FOLDER, None)
    known = _known(_parser())
    launch = {k: v for k, v in rest.items() if k in _launch_actions() and k not in known}
    trainer = {k: v for k, v in rest.items() if k not in launch}
    return Given(dict(block), trainer, launch, env, [], [], folder, source)


def check(given: Given) -> Request:
    """Return the checked command, after setting `env` as TRL does; a ConfigError has every mistake in both parts."""
    problems: list[str] = []
    parser = _parser()
    known = _known(parser)
    for key in given.trainer:
        if key not in known:
            problems.append(_unknown(key, [*known, "adg", *_launch_actions()]))
    try:
        ADGConfig.parse(given.adg, prefix="adg.")
    except ConfigError as err:
        problems += err.problems
    for name, value in given.env.items():
        os.environ[name] = str(value)
    parts: tuple[Any, ...] = ()
    left: list[str] = []
    try:
        parser.set_defaults_with_config(**{k: v for k, v in given.trainer.items() if k in known})
        *found, left = parser.parse_args_into_dataclasses(
            args=list(given.flags), return_remaining_strings=True, look_for_args_file=False
        )
        parts = tuple(found)
    except (ValueError, TypeError, ImportError) as err:
        problems.append(str(err).strip())
    options = [*known, *_adg_flags(), *_launch_actions()]
    problems += [_unknown(name, options, dashes="--") for name in _strange(given.flags, parser)]
    if problems:
        raise ConfigError(problems, source=given.source)
    script, training, model, mixture = parts
    passed = _without(given.arguments, left)
    return Request(given.adg, script, training, model, mixture, [*_launch_flags(given.launch), *left], passed, given)


def print_help() -> None:
    """Print the arguments of `trl sft`, and those of the selection."""
    print(_parser().format_help())
    print("selection:")
    for name, field in ADGConfig.model_fields.items():
        print(f"  --{_PREFIX}{name:<28} {field.description}")
    print("\nArguments of `accelerate launch`, such as --num_processes, are passed on.")


def launcher_arguments(launch: Sequence[str]) -> list[str]:
    """Return the arguments with TRL's `--accelerate_config NAME` resolved; a ConfigError where there is none."""
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    try:
        return list(resolve_accelerate_config_argument(list(launch)))
    except ValueError as err:
        raise ConfigError([str(err)]) from None


def _parser() -> Any:
    trl()
    from trl.scripts.sft import make_parser

    parser = make_parser(prog="adg sft")
    parser.allow_abbrev = False
    parser.error = _refuse
    return parser


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _known(parser: ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions if action.dest != "help"}


def _launch_actions() -> dict[str, Action | None]:
    from accelerate.commands.launch import launch_command_parser

    skipped = ("help", "training_script", "training_script_args")
    actions: dict[str, Action | None] = {a.dest: a for a in launch_command_parser()._actions if a.dest not in skipped}
    return actions | dict.fromkeys(_OF_LAUNCHER)


def _launch_flags(keys: Mapping[str, Any]) -> list[str]:
    actions, flags = _launch_actions(), []
    for key, value in keys.items():
        action = actions[key]
        if action is not None and action.nargs == 0:  # a switch
            flags += [f"--{key}"] if value else []
        elif value is not None:
            flags += [f"--{key}", str(value)]
    return flags


def _strange(flags: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Return the names of flags that neither TRL nor accelerate knows."""
    actions = [*parser._actions, *(action for action in _launch_actions().values() if action)]
    known = {option for action in actions for option in action.option_strings} | {f"--{name}" for name in _OF_LAUNCHER}
    names = [flag.partition("=")[0] for flag in flags if flag.startswith("--")]
    return [name.removeprefix("--") for name in names if name not in known]


def _adg_flags() -> list[str]:
    return [_PREFIX + name for name in ADGConfig.model_fields]


def _unknown(key: str, known: Sequence[str], dashes: str = "") -> str:
    close = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
    own = difflib.get_close_matches(key, list(ADGConfig.model_fields), n=1)
    if close and own != [key]:
        hint = f"did you mean `{dashes}{close[0]}`?"
    elif own:
        hint = f"did you mean `adg.{own[0]}`?"
    else:
        hint = "`adg sft --help` lists the keys of the trainer, docs/settings.md those of `adg:`"
    return f"{dashes}{key} is not a setting of trl sft: {hint}"


def _taken(flags: list[str], name: str) -> str | None:
    """Return the value of a flag, and take both from the list; a ConfigError where it has no value."""
    for place, flag in enumerate(flags):
        if flag.startswith(name + "="):
            return flags.pop(place).partition("=")[2]
        if flag == name:
            if place + 1 == len(flags):
                raise ConfigError([f"{name} has no value: give the path of a YAML file"])
            flags.pop(place)
            return flags.pop(place)
    return None


def _without(flags: Sequence[str], left: Sequence[str]) -> list[str]:
    """Return `flags` without the subsequence `left`."""
    kept, remaining = [], list(left)
    for flag in flags:
        if remaining and flag == remaining[0]:
            remaining.pop(0)
        else:
            kept.append(flag)
    return kept
