"""Axolotl configurations on a tiny model, and what the plugin makes of them. Only where Axolotl is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from tiny_runs import save

CPU = {
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "sample_packing": False,
    "dataset_num_proc": 1,
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "lora_embedding_kernel": False,
    "optimizer": "adamw_torch",
    "learning_rate": 1e-3,
    "num_epochs": 1,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "sequence_len": 512,
    "seed": 7,
    "adapter": "lora",
    "lora_r": 2,
    "lora_alpha": 4,
    "lora_target_modules": ["q_proj"],
    "logging_steps": 1,
}
ADG = {"budget": 10, "num_samples": 3, "max_new_tokens": 6}


def tiny_backbone(folder: Path) -> Path:
    """Write the tiny model and tokenizer, once."""
    return folder if (folder / "config.json").is_file() else save(folder)


def write_config(folder: Path, **settings: Any) -> Path:
    """Write an Axolotl YAML into `folder` and return its path."""
    config = {
        "base_model": str(tiny_backbone(folder / "backbone")),
        "plugins": ["adg_plugin.ADGPlugin"],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        **CPU,
        **settings,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return path


def load(path: Path) -> Any:
    """Return the validated configuration, as Axolotl's commands load it."""
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    PluginManager.get_instance().plugins.clear()  # a singleton that remembers the plugins of the test before
    return load_cfg(str(path))


def load_datasets(path: Path, *, preprocess: bool = False) -> tuple[Any, Any]:
    """Return the configuration and the data sets that the plugin gives Axolotl."""
    from axolotl.integrations.base import PluginManager

    cfg = load(path)
    cfg["is_preprocess"] = preprocess
    return cfg, PluginManager.get_instance().load_datasets(cfg, preprocess=preprocess)


def texts(cfg: Any, dataset: Any) -> list[str]:
    """Return each row of a tokenised data set as text."""
    from axolotl.loaders import load_tokenizer

    tokenizer = load_tokenizer(cfg)
    return [tokenizer.decode(tokens) for tokens in dataset["input_ids"]]


def scores(cfg: Any) -> dict[str, float]:
    """Return the scores in the run folder of a configuration, by id."""
    from adg_plugin.store import RunFolder

    table = RunFolder.read(Path(cfg["dataset_prepared_path"]) / "adg").scores()
    return dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))


def chosen(cfg: Any) -> list[str]:
    """Return the chosen ids in the run folder of a configuration, best score first."""
    lines = (Path(cfg["dataset_prepared_path"]) / "adg" / "selected.jsonl").read_text().splitlines()
    return [json.loads(line)["id"] for line in lines]
