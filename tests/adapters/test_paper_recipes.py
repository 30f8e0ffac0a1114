"""The recipes of the paper's training: their numbers, the steps that follow from them, and their prompt."""

import math
import re
from importlib.util import find_spec

import pytest
import yaml

from adg_plugin.adapters import recipes
from adg_plugin.adapters.axolotl.raw_rows import by_formats
from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.rows import parse_row
from adg_plugin.data.sources import Record
from adg_plugin.data.templates import make_template

PAPER = [name for name in recipes.names() if name.endswith("-paper")]
OURS = [name for name in recipes.names() if name.endswith("-paper-lora")]
SAMPLING = {"budget": 10_000, "num_samples": 5, "temperature": 1.4, "top_k": 50, "top_p": 0.9, "max_new_tokens": 256}
TRAINING = {  # keys of TRL, keys of Axolotl, the value in the authors' scripts
    ("learning_rate", "learning_rate", 1e-5),
    ("num_train_epochs", "num_epochs", 5),
    ("per_device_train_batch_size", "micro_batch_size", 2),
    ("gradient_accumulation_steps", "gradient_accumulation_steps", 8),
    ("lr_scheduler_type", "lr_scheduler", "cosine"),
    ("warmup_steps", "warmup_ratio", 0.03),
    ("weight_decay", "weight_decay", 0.0),
    ("optim", "optimizer", "adamw_torch"),
    ("max_length", "sequence_len", 2048),
    ("bf16", "bf16", True),
    ("tf32", "tf32", True),
    ("gradient_checkpointing", "gradient_checkpointing", True),
}
ROWS = [
    {"instruction": "Add.", "input": "2 and 3", "output": "5"},
    {"instruction": "Add {2} and 3.", "input": "", "output": "5"},
    {"instruction": "Add.", "output": "5"},
]


def read(name):
    text = recipes.read(name)
    return text, yaml.safe_load(text)


def rows_a_step(name):
    """Return rows per device and micro-batch, micro-batches, and devices."""
    text, recipe = read(name)
    if name.startswith("trl/"):
        sizes = recipe["per_device_train_batch_size"], recipe["gradient_accumulation_steps"]
        return (*sizes, recipe.get("num_processes", 1))
    processes = re.search(r"--nproc_per_node=(\d+)", text)
    return recipe["micro_batch_size"], recipe["gradient_accumulation_steps"], int(processes[1]) if processes else 1


def epochs(name):
    _, recipe = read(name)
    return recipe["num_train_epochs" if name.startswith("trl/") else "num_epochs"]


def steps(name):
    _, recipe = read(name)
    return recipe["adg"]["budget"] * epochs(name) // math.prod(rows_a_step(name))


def test_both_backbones_are_there_for_both_frameworks_each_with_a_variant_of_ours():
    expected = {
        f"{framework}/{model}-paper" for framework in ("axolotl", "trl") for model in ("llama3-8b", "qwen2.5-7b")
    }
    assert set(PAPER) == expected
    assert {name.removesuffix("-lora") for name in OURS} == expected


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_has_the_authors_numbers_and_their_steps(name):
    text, recipe = read(name)
    assert steps(name) == 781
    assert ": 781 steps" in text
    side = 0 if name.startswith("trl/") else 1
    assert {entry[side]: recipe.get(entry[side]) for entry in TRAINING} == {entry[side]: entry[2] for entry in TRAINING}
    assert not recipe.get("sample_packing")  # else a step is not 64 rows
    assert not {"packing", "adapter", "use_peft"} & set(recipe)
    assert {key: recipe["adg"][key] for key in (*SAMPLING, "weight", "bins")} == {
        **SAMPLING,
        "weight": 0.4,
        "bins": 1000,
    }


@pytest.mark.parametrize("name", OURS)
def test_a_lora_variant_says_that_it_is_ours_and_counts_its_own_steps(name):
    text, recipe = read(name)
    assert text.startswith("# Ours, not the paper's")
    assert f": {steps(name)} steps" in text
    assert "adapter" in recipe or recipe["use_peft"]
    _, papers = read(name.removesuffix("-lora"))
    same = {key: value for key, value in papers["adg"].items() if key != "dtype"}
    assert recipe["adg"] == same


@pytest.mark.parametrize("name", [name for name in [*PAPER, *OURS] if name.startswith("trl/")])
def test_the_steps_that_transformers_counts_are_told(name):
    size, accumulation, devices = rows_a_step(name)
    batches = math.ceil(10_000 / (size * devices))
    assert re.search(rf"counts {epochs(name) * math.ceil(batches / accumulation)}\b", read(name)[0])


@pytest.mark.axolotl
@pytest.mark.skipif(find_spec("axolotl") is None, reason="needs Axolotl: `make test` runs this in .venv-axolotl")
@pytest.mark.parametrize("name", [name for name in [*PAPER, *OURS] if name.startswith("axolotl/")])
def test_the_steps_that_axolotl_counts_are_told(name):
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.trainer import calculate_total_num_steps
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": [[1]] * 10_000, "labels": [[1]] * 10_000})
    cfg = DictDefault({"num_epochs": epochs(name), "batch_size": math.prod(rows_a_step(name)), "sequence_len": 2048})
    assert f"rounds up to {calculate_total_num_steps(cfg, rows)}" in read(name)[0]


@pytest.mark.parametrize("name", [*PAPER, *OURS])
def test_the_prompt_is_alpaca_without_the_last_line_break(name):
    _, recipe = read(name)
    template = make_template("alpaca-paper", None)
    if name.startswith("trl/"):
        assert recipe["adg"]["template"] == "alpaca-paper"
        return
    kind = recipe["adg"]["datasets"][0]["type"]
    own = {**kind, "system_format": "{system}", "system_prompt": ""}
    for number, data in enumerate(ROWS):
        row = parse_row(Record(data, f"x:{number}", DatasetSpec(path="x")))
        shown, expected = by_formats(own, row), template(row)
        assert shown.text == expected.text
        assert shown.text.endswith("\n\n### Response:")
        assert (shown.start, shown.end) == (expected.start, expected.end)
