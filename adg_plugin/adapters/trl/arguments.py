"""The arguments of `trl sft` and of the selection, from one YAML file and one command line; all mistakes at once."""

from __future__ import annotations

import difflib
import os
from argparse import Action, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from adg_plugin.adapters.recipes import with_overrides
from adg_plugin.adapters.secrets import taken_over
from adg_plugin.adapters.trl.checks import trl
from adg_plugin.config.files import load_yaml, override
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError

_PREFIX = "adg_"
RUN_FOLDER = "adg_run_folder"  # of `adg sft`: train on the rows of a finished run folder, select nothing
NO_MODEL = "model_name_or_path is missing: set it to the model to train (a folder, a hub name, `demo`)"
_ACCELERATE_CONFIG = "accelerate_config"  # TRL's own name for accelerate's --config_file


@dataclass(frozen=True, slots=True)
class Request:
    """A checked command."""

    adg: dict[str, Any]  # the `adg:` block as written, with the flags `--adg_*` on top
    trainer: dict[str, Any]  # the keys of `trl sft` in the YAML, untouched
    env: dict[str, Any]  # variables of the environment, which are set
    run_folder: str | None  # a finished run folder to train on
    source: str  # the YAML file, for error texts
    script: Any  # TRL's ScriptArguments
    training: Any  # SFTConfig
    model: Any  # ModelConfig
    mixture: Any  # DatasetMixtureConfig
    launch: list[str]  # arguments for `accelerate launch`
    passed: list[str]  # the command line without accelerate's part


def read_command(arguments: Sequence[str]) -> Request:
    """Return what `[--config FILE.yaml] [--adg_KEY VALUE] [...]` asks for, after setting `env` as TRL does.

    Raises:
        ConfigError: with every flag `--adg_*` that cannot be applied, else every mistake in both parts.
    """
    flags = list(arguments)
    if flags and not flags[0].startswith("-"):
        raise ConfigError([f"{flags[0]}: adg sft takes flags, as trl sft does: write --config {flags[0]}"])
    path = _config_of(flags) or ""
    data = {**(load_yaml(path) if path else {}), **taken_over()}
    block = _mapping(data, "adg", path)
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
        if name == RUN_FOLDER:
            data[RUN_FOLDER] = value
            continue
        try:
            block = override(block, f"{name.removeprefix(_PREFIX)}={value}")
        except ValueError as err:
            problems.append(f"--{name} {value}: {err}")
    if (folder := data.get(RUN_FOLDER)) and block:
        problems.append(
            f"{RUN_FOLDER} is {folder!r} and adg.{next(iter(block))} is set: the rows are chosen already; leave one out"
        )
    if problems:
        raise ConfigError(problems)
    return _checked({**data, "adg": block}, path, rest, arguments)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Request:
    """Return what a recipe asks for after `--set KEY=VALUE`; errors as those of `read_command`."""
    data, problems = with_overrides(load_yaml(path), overrides, of_trainer=_known(_parser()))
    if problems:
        raise ConfigError(problems, source=str(path))
    return _checked(data, str(path))


def _mapping(data: Mapping[str, Any], name: str, source: str) -> dict[str, Any]:
    part = data.get(name) or {}
    if not isinstance(part, dict):
        raise ConfigError([f"{name} is {part!r}: write `key: value` lines under it"], source=source)
    return part


def _checked(data: Mapping[str, Any], source: str, flags: Sequence[str] = (), arguments: Sequence[str] = ()) -> Request:
    adg, env = _mapping(data, "adg", source), _mapping(data, "env", source)
    parser, of_launcher = _parser(), _launch_actions()
    known = _known(parser)
    rest = {key: value for key, value in data.items() if key not in ("adg", "env", RUN_FOLDER)}
    launch = {key: value for key, value in rest.items() if key in of_launcher and key not in known}
    trainer = {key: value for key, value in rest.items() if key not in launch}
    problems = [_unknown(key, [*known, "adg", *of_launcher]) for key in trainer if key not in known]
    try:
        ADGConfig.parse(adg, prefix="adg.")
    except ConfigError as err:
        problems += err.problems
    for name, value in env.items():
        os.environ[name] = str(value)
    parts: tuple[Any, ...] = ()
    try:
        parser.set_defaults_with_config(**{key: value for key, value in trainer.items() if key in known})
        parts = parser.parse_args_into_dataclasses(
            args=list(flags), return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError) as err:
        problems.append(str(err).strip())
    options = [*known, *(_PREFIX + name for name in ADGConfig.model_fields), *of_launcher]
    actions = [*parser._actions, *(action for action in of_launcher.values() if action)]
    written = {f"--{_ACCELERATE_CONFIG}", *(option for action in actions for option in action.option_strings)}
    for name in (flag.partition("=")[0] for flag in flags if flag.startswith("--")):
        if name not in written:
            problems.append(_unknown(name.removeprefix("--"), options, dashes="--"))
    if problems:
        raise ConfigError(problems, source=source)
    script, training, model, mixture, left = parts
    launched = [*_launch_flags(launch, of_launcher), *left]
    passed = _without(arguments, left)
    folder = data.get(RUN_FOLDER)
    return Request(adg, trainer, env, folder, source, script, training, model, mixture, launched, passed)


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
    actions = {action.dest: action for action in launch_command_parser()._actions if action.dest not in skipped}
    return {**actions, _ACCELERATE_CONFIG: None}


def _launch_flags(keys: Mapping[str, Any], actions: Mapping[str, Action | None]) -> list[str]:
    flags = []
    for key, value in keys.items():
        action = actions[key]
        if action is not None and action.nargs == 0:  # a switch
            flags += [f"--{key}"] if value else []
        elif value is not None:
            flags += [f"--{key}", str(value)]
    return flags


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


def _config_of(flags: list[str]) -> str | None:
    """Return the value of `--config`, and take both from the list; a ConfigError where it has no value."""
    place = next((n for n, flag in enumerate(flags) if flag.partition("=")[0] == "--config"), None)
    if place is None:
        return None
    _, equals, value = flags.pop(place).partition("=")
    if equals:
        return value
    if place == len(flags):
        raise ConfigError(["--config has no value: give the path of a YAML file"])
    return flags.pop(place)


def _without(flags: Sequence[str], left: Sequence[str]) -> list[str]:
    """Return `flags` without the subsequence `left`."""
    kept, remaining = [], list(left)
    for flag in flags:
        if remaining and flag == remaining[0]:
            remaining.pop(0)
        else:
            kept.append(flag)
    return kept
