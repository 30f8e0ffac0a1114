"""The `adg:` block of an Axolotl YAML: its schema, its pool, its defaults, and what it cannot be combined with."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, field_validator

from adg_plugin.config.run_folder import publication_problems, run_folder
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError

OUTPUT, PREPARED = "model-out", "last_run_prepared"  # Axolotl's defaults: output_dir, dataset_prepared_path
RUN_FOLDER = "adg"  # in the folder of prepared data sets
_REFUSED = {
    "rl": "preference and reward data have no single answer to learn: leave it out, ADG is for SFT",
    "streaming": "rows that stream cannot be compared with each other: leave it out",
    "pretraining_dataset": "text without instructions cannot be asked: use `datasets` of instructions",
    "skip_prepare_dataset": "the prompts are read from the prepared rows: leave it out",
    "reward_model": "a reward model has no answers: leave it out",
    "process_reward_model": "a reward model has no answers: leave it out",
    "processor_type": "images and sound are not supported: use a model and data of text alone",
}
_REFUSED_TYPES = {
    "completion": "finished text holds no prompt to ask: use alpaca or chat_template rows",
    "pretrain": "finished text holds no prompt to ask: use alpaca or chat_template rows",
    "bradley_terry": "preference pairs have no single answer to learn: use alpaca or chat_template rows",
    "stepwise_supervised": "reward data has no answers to learn: use alpaca or chat_template rows",
}
_CHOSEN_BY_TRAINING = {
    "template": "the prompts are those of training",
    "truncate": "the prompts are those of training, which a cut would change",
}
# What Axolotl loads 4-bit models with, so that the selection asks the very model that will be trained.
_FOUR_BIT: dict[str, Any] = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}


class ADGArgs(BaseModel):
    """What the plugin adds to Axolotl's schema."""

    # Kept as it was written: which keys a user left out decides what comes from the rest of the YAML.
    adg: dict[str, Any]

    @field_validator("adg", mode="before")
    @classmethod
    def _check(cls, block: Any) -> Any:
        try:
            cls.parse_block(block)
        except ConfigError as err:
            raise ValueError(str(err)) from None
        return dict(block)

    @staticmethod
    def parse_block(block: Any) -> ADGConfig:
        """Return the settings in a block; a ConfigError names every mistake in it."""
        if not isinstance(block, Mapping):
            raise ConfigError([f"adg is {block!r}: write its settings below it, such as budget: 10000"])
        # A pool here has Axolotl's own keys, which Axolotl checks once it has been moved to where it looks for it.
        return ADGConfig.parse({key: value for key, value in block.items() if key != "datasets"}, prefix="adg.")


def check_supported(cfg: Mapping[str, Any]) -> None:
    """Validate that rows can be selected under this YAML; a ConfigError names every setting in the way."""
    problems = [f"{key} is {cfg[key]!r}: {fix}" for key, fix in _REFUSED.items() if cfg.get(key)]
    block = cfg.get("adg")
    if block is None:
        problems.append(
            "adg is missing: plugins names adg_plugin.ADGPlugin, so add a block such as adg: {budget: 10000}"
        )
    block = block if isinstance(block, Mapping) else {}
    for number, entry in enumerate(cfg.get("datasets") or block.get("datasets") or []):
        if not isinstance(entry, Mapping) and entry != "demo":
            problems.append(f"datasets[{number}] is {entry!r}: write it as Axolotl does, with `path` and `type`")
        kind = entry.get("type") if isinstance(entry, Mapping) else None
        fix = _REFUSED_TYPES.get(kind.partition(":")[0].partition(".")[0]) if isinstance(kind, str) else None
        if fix:
            problems.append(f"datasets[{number}].type is {kind!r}: {fix}")
    if cfg.get("datasets") and block.get("datasets"):
        problems.append(
            "datasets and adg.datasets are both given: keep adg.datasets, without the plugin nothing trains"
        )
    if block.get("answers"):
        problems.append(
            f"adg.answers is {block['answers']!r}: Axolotl's rows have no ids that it could name; select first with "
            "`adg select`, and name its selected.jsonl in datasets, without the plugin"
        )
    if cfg.get("hub_model_id"):
        problems += publication_problems(selection_folder(cfg), cfg.get("output_dir") or OUTPUT)
    if not block.get("model"):
        for key, why in _CHOSEN_BY_TRAINING.items():
            if block.get(key):
                problems.append(f"adg.{key} is {block[key]!r}: {why}; leave it out")
    if problems:
        raise ConfigError(problems)


def selection_folder(cfg: Mapping[str, Any]) -> Path:
    """Return the run folder: the `output_dir` of the block, else `adg` in the folder of prepared data sets.

    Where that folder lies in the output folder, of which all but `_*` is uploaded, it is `_adg/selection` there, unless
    version 0.2 has begun the other.
    """
    block, output = cfg.get("adg"), cfg.get("output_dir") or OUTPUT
    default = Path(cfg.get("dataset_prepared_path") or PREPARED) / RUN_FOLDER
    named = block.get("output_dir") if isinstance(block, Mapping) else None
    if named is None and publication_problems(default, output) and not default.is_dir():
        return Path(run_folder(training=output))
    return Path(named or default)


def adopt_pool(cfg: MutableMapping[str, Any]) -> None:
    """Move `adg.datasets` to `datasets`, and put files in the place of `demo`, in the YAML as it was read."""
    block = cfg["adg"]
    if isinstance(block, MutableMapping) and block.get("datasets"):
        cfg["datasets"] = block.pop("datasets")
    entries = cfg.get("datasets")
    if isinstance(entries, list | tuple):
        cfg["datasets"] = [new for entry in entries for new in _expanded(entry)]
    if cfg.get("base_model") == "demo":
        from adg_plugin.demo import model_path

        cfg["base_model"] = str(model_path())


def selection_config(cfg: Mapping[str, Any]) -> ADGConfig:
    """Return the settings: those of the `adg:` block, else training's; a ConfigError for a wrong key or value."""
    block = dict(cfg["adg"])
    own = {} if block.get("model") else _of_training(cfg)
    return ADGConfig.parse({**own, **block}, prefix="adg.")


def _of_training(cfg: Mapping[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {"model": cfg["base_model"], "trust_remote_code": bool(cfg.get("trust_remote_code"))}
    if cfg.get("revision_of_model"):
        own["revision"] = cfg["revision_of_model"]
    if cfg.get("torch_dtype") is not None:
        own["dtype"] = str(cfg["torch_dtype"]).removeprefix("torch.")
    if cfg.get("load_in_4bit"):
        written = {k: v for k, v in (cfg.get("bnb_config_kwargs") or {}).items() if k in _FOUR_BIT}
        own |= _FOUR_BIT | written
    return own


def _expanded(entry: Any) -> list[Any]:
    path = entry.get("path") if isinstance(entry, Mapping) else entry
    if path != "demo":
        return [entry]
    from adg_plugin.demo import pool_paths

    kinds = {"chat": "chat_template"}
    return [{"path": str(f), "ds_type": "json", "type": kinds.get(f.stem, "alpaca")} for f in pool_paths()]
