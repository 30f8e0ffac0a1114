"""Every piece of Axolotl's inside that the plugin touches; what it expects of them, test_axolotl_contract.py checks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from axolotl.cli.config import load_cfg
from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH
from axolotl.common.datasets import TrainDatasetMeta, load_datasets
from axolotl.loaders import load_tokenizer as load_tokenizer
from axolotl.prompt_strategies.user_defined import UserDefinedDatasetConfig
from axolotl.utils.chat_templates import get_chat_template_from_config
from axolotl.utils.data.sft import _parse_dataset_type
from axolotl.utils.data.shared import (
    datasets_with_name_generator,
    generate_dataset_hash_from_config,
    load_dataset_with_config,
)
from axolotl.utils.data.wrappers import get_dataset_wrapper
from axolotl.utils.dict import DictDefault
from axolotl.utils.trainer import calculate_total_num_steps

from adg_plugin.adapters.axolotl.raw_rows import by_formats
from adg_plugin.data.templates import Template
from adg_plugin.errors import redacted
from adg_plugin.store import keys

# Axolotl computes these from the whole pool while it loads, and later takes them as given.
_ESTIMATES = ("total_num_tokens", "total_supervised_tokens", "sample_packing_eff_est")


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of `datasets` (or one part of it), raw and tokenised with only the answers unmasked."""

    number: int  # of the entry
    path: str
    kind: str  # the entry's `type`, '' where that is a mapping
    columns: dict[str, Any]  # the entry's settings that name columns
    chat_template: str | None  # of a chat_template entry
    formats: Template | None  # of an entry whose `type` is a mapping
    raw: Any  # datasets.Dataset
    tokenised: Any  # datasets.Dataset with input_ids and labels; row n is the raw row n where both are as long


def read_config(path: str) -> Any:
    """Return the validated configuration of a YAML, as `axolotl preprocess` loads it."""
    os.environ["AXOLOTL_IS_PREPROCESS"] = "1"  # no steps are counted
    return load_cfg(path)


def load_rows(cfg: Any) -> TrainDatasetMeta:
    """Return what Axolotl would train on without the plugin, and leave its estimates out of `cfg`."""
    written = {key: cfg.get(key) for key in _ESTIMATES}
    meta = load_datasets(cfg=cfg)
    for key, value in written.items():
        cfg[key] = value
    return meta


def with_rows(cfg: Any, meta: TrainDatasetMeta, keep: Sequence[int], *, count_steps: bool) -> TrainDatasetMeta:
    """Return the data sets with these training rows only.

    Args:
        cfg: gets Axolotl's estimates for these rows.
        keep: positions of the rows, in the order in which they will stand.
        count_steps: whether training follows.
    """
    # Without its own table, a selection would be counted in full: Axolotl reads the table past the indices.
    train = meta.train_dataset.select(keep).flatten_indices()
    steps = meta.total_num_steps
    if count_steps:
        steps = calculate_total_num_steps(cfg, train)
        if cfg.get("max_steps"):
            steps = min(steps, cfg["max_steps"])
    return TrainDatasetMeta(train_dataset=train, eval_dataset=meta.eval_dataset, total_num_steps=steps)


def sources(cfg: Any, tokenizer: Any, *, only: int | None = None) -> Iterator[Source]:
    """Yield the entries of `datasets`, tokenised as for training but with everything masked except the answers.

    Args:
        only: number of the single entry wanted; None for all.
    """
    plain = _answers_only(cfg)
    for number, entry in enumerate(plain["datasets"]):
        if only is not None and number != only:
            continue
        for part in datasets_with_name_generator([entry]):
            raw = load_dataset_with_config(part, cfg.get("hf_use_auth_token"))
            if hasattr(raw, "keys"):  # a mapping of splits
                raw = raw[part.get("split") if part.get("split") in raw else "train"]
            if part.get("shards"):
                raw = raw.shuffle(seed=cfg.get("seed")).shard(part["shards"], index=part.get("shards_idx") or 0)
            base, style = _parse_dataset_type(part.get("type"))
            tokenised, _ = get_dataset_wrapper(
                dataset_config=part,
                tokenizer=tokenizer,
                cfg=plain,
                dataset_base_type=base,
                dataset=raw,
                dataset_prompt_style=style,
            )
            kind = part["type"] if isinstance(part.get("type"), str) else ""
            formats, columns, template = None, part, None
            if isinstance(part.get("type"), dict):
                columns = asdict(UserDefinedDatasetConfig(**part["type"].to_dict()))  # with Axolotl's defaults
                formats = partial(by_formats, columns)
            elif _is_chat(kind):
                template = get_chat_template_from_config(cfg=plain, ds_cfg=part, tokenizer=tokenizer)
            columns = {key: value for key, value in columns.items() if key.startswith(("field_", "message_", "roles"))}
            yield Source(number, redacted(str(part["path"])), kind, columns, template, formats, raw, tokenised)


def entry_digest(cfg: Any, number: int) -> str:
    """Return what tells an entry of `datasets` from all others, wherever it stands."""
    entry = {key: value for key, value in cfg["datasets"][number].items() if value is not None}
    return keys.digest(json.loads(json.dumps(entry, default=str))).hex()


def end_tokens(cfg: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids of the tokens that end a turn."""
    found = {tokenizer.eos_token_id} - {None}
    for token in cfg.get("eot_tokens") or []:
        found.update(tokenizer.encode(token, add_special_tokens=False)[-1:])
    return frozenset(found)


def prepared_folder(cfg: Any) -> Path:
    """Return the folder of prepared data sets."""
    return Path(cfg.get("dataset_prepared_path") or DEFAULT_DATASET_PREPARED_PATH)


def prepared_hash(cfg: Any, tokenizer: Any) -> str:
    """Return what tells the tokenisation settings of the data sets from all others."""
    settings = {key: cfg.get(key) for key in ("chat_template", "chat_template_jinja", "default_system_message")}
    own = generate_dataset_hash_from_config(cfg, cfg["datasets"], tokenizer.name_or_path)
    return f"{own} {json.dumps(settings, default=str)}"


def _answers_only(cfg: Any) -> Any:
    """Return the configuration with every setting cleared that unmasks more or less than the answers."""
    entries = []
    for entry in cfg["datasets"]:
        cleared = {key: value for key, value in entry.items() if not key.startswith("message_field_training")}
        if _is_chat(entry.get("type")) and entry.get("roles_to_train", ["assistant"]):
            cleared.pop("train_on_eot", None)
            cleared |= {"roles_to_train": ["assistant"], "train_on_eos": "turn"}
        entries.append(DictDefault(cleared))
    return DictDefault({**cfg, "train_on_inputs": False, "datasets": entries})


def _is_chat(kind: Any) -> bool:
    return isinstance(kind, str) and kind.startswith("chat_template")
