"""`adg run` on an Axolotl YAML: preprocess, which selects, and train, as a user would run them.

`python -m adg_plugin.adapters.axolotl.run ARGUMENTS` is the `axolotl` command as one of its stages.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adg_plugin.adapters.axolotl.args import OUTPUT, ADGArgs, check_supported
from adg_plugin.adapters.processes import check_free, follow, parent_watchdog, run_stage
from adg_plugin.adapters.recipes import with_overrides
from adg_plugin.adapters.secrets import public, shown, unwritten
from adg_plugin.config.files import load_yaml
from adg_plugin.config.run_folder import PRIVATE
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, need, redacted
from adg_plugin.store.files import replacing

_CHANGED = "adg-axolotl.yaml"  # among what is private in the output folder: the YAML with the overrides in it
_OF_BOTH = ("datasets", "load_in_4bit", "output_dir", "seed", "trust_remote_code")


def is_axolotl(path: Path) -> bool:
    """Return whether a YAML is Axolotl's, which has `base_model` or the plugin; a ConfigError if it cannot be read."""
    data = load_yaml(path)
    return "base_model" in data or _names_the_plugin(data)


def _names_the_plugin(data: Mapping[str, Any]) -> bool:
    plugins = data.get("plugins")
    return isinstance(plugins, list) and any("ADGPlugin" in str(name) for name in plugins)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an Axolotl YAML will do."""

    config: Path
    data: Mapping[str, Any]  # its content, with the overrides
    overrides: tuple[str, ...]  # as they were written; with any, Axolotl gets a file of its own in the output folder
    train_arguments: tuple[str, ...]  # passed on to `axolotl train`

    @property
    def out(self) -> Path:
        """The folder of the trained model."""
        return Path(self.data.get("output_dir") or OUTPUT)

    def lines(self) -> list[str]:
        """Return the plan for people, a line each."""
        block = self.data["adg"]
        pool = self.data.get("datasets") or block.get("datasets") or []
        entries = pool if isinstance(pool, list | tuple) else [pool]
        paths = [str(entry.get("path", entry) if isinstance(entry, Mapping) else entry) for entry in entries]
        budget = block.get("budget_per_dataset") or block.get("budget", "10000")
        return [
            f"pool       {redacted(', '.join(paths))}",
            f"selection  {budget} rows, sampled from {block.get('model') or self.data['base_model']}",
            f"training   {self.data['base_model']}, {self.data.get('adapter') or 'all weights'}",
            "launch     axolotl preprocess, then " + shown("axolotl train", *self.train_arguments),
            f"output     {self.out}",
        ]


def make_plan(
    config: Path, overrides: Sequence[str] = (), out: Path | None = None, train_arguments: Sequence[str] = ()
) -> Plan:
    """Return what an Axolotl YAML will do; Axolotl itself checks the rest of its keys.

    Args:
        overrides: `key=value` strings, `adg.budget=500` for the block.
        train_arguments: passed on to `axolotl train`, such as `--launcher torchrun`.

    Raises:
        ConfigError: with every mistake in the overrides and the block, and every setting that ADG refuses.
    """
    data, problems = with_overrides(load_yaml(config), overrides, of_trainer=_OF_BOTH)
    if out is not None:
        data = {**data, "output_dir": str(out)}
    if not data.get("base_model"):
        problems.append("base_model is missing: set it to the model to train, a folder or a hub name")
    if not _names_the_plugin(data):
        problems.append("plugins does not name adg_plugin.ADGPlugin: add plugins: [adg_plugin.ADGPlugin]")
    try:
        check_supported(data)
    except ConfigError as err:
        problems += err.problems
    try:
        ADGArgs.parse_block(data["adg"] if data.get("adg") is not None else {})
    except ConfigError as err:
        problems += err.problems
    if problems:
        raise ConfigError(problems, source=str(config))
    if not train_arguments:
        import torch

        if not torch.accelerator.is_available():  # accelerate's own launcher expects one
            train_arguments = ["--launcher", "python"]
    written = [*overrides, *([] if out is None else [f"output_dir={out}"])]
    return Plan(config, data, tuple(written), tuple(train_arguments))


def dry_run(plan: Plan) -> list[str]:
    """Return the plan, a line each, after the checks of `run` before it starts Axolotl, with the same errors."""
    _check_axolotl(plan)
    check_free(plan.out / PRIVATE)
    return plan.lines()


def _check_axolotl(plan: Plan) -> None:
    """Raise where Axolotl is missing, or lacks a key that an override names: it would leave that out without a word."""
    need("axolotl", extra="axolotl", why="adg run on an Axolotl YAML")
    if not plan.overrides:
        return
    from axolotl.utils.schemas.config import AxolotlInputConfig

    known = [*AxolotlInputConfig.model_fields, *ADGConfig.model_fields, "adg", "plugins"]
    problems = []
    for text in plan.overrides:
        head = text.partition("=")[0].split(".")[0]
        if head not in known:
            close = difflib.get_close_matches(head, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else "settings of the selection begin with `adg.`"
            problems.append(f"--set {head}: Axolotl has no setting {head}: {hint}")
    if problems:
        raise ConfigError(problems)


def run(plan: Plan) -> dict[str, str]:
    """Run `axolotl preprocess` and `axolotl train`, and return the folder of the trained model, under `model`.

    Raises:
        MissingExtraError: Axolotl is not installed here.
        ConfigError: an override names a key that Axolotl does not have.
        StoreError: the output folder is in use by another `adg run`.
        StageError: one of them failed; it has printed why.
    """
    _check_axolotl(plan)
    config = plan.config
    hidden: dict[str, Any] = {}
    with parent_watchdog(plan.out / PRIVATE):
        if plan.overrides:
            config, hidden = plan.out / PRIVATE / _CHANGED, unwritten(plan.data)
            with replacing(config) as sink:
                sink.write(yaml.safe_dump(public(plan.data), sort_keys=False, allow_unicode=True).encode())
        command = ["-m", "adg_plugin.adapters.axolotl.run"]
        run_stage("axolotl preprocess", [*command, "preprocess", str(config)], hidden)
        run_stage("axolotl train", [*command, "train", str(config), *plan.train_arguments], hidden)
    return {"model": str(plan.out)}


def main() -> None:
    """Run Axolotl's command line, and end with the command that started it."""
    follow()
    from axolotl.cli.main import main as axolotl

    axolotl()


if __name__ == "__main__":
    main()
