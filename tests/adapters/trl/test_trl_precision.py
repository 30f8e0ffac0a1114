"""In which precision a trainer's own model is asked: that of its training, in TRL's trainers and for `adg run`."""

import json
import logging
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, set_seed
from trl import SFTTrainer
from trl_runs import SELECTION, lora, losses, pool, sft_config, tiny, weights

from adg_plugin import ADGSelectionCallback, ADGSFTTrainer, select_dataset
from adg_plugin.adapters.trl.arguments import read_recipe
from adg_plugin.adapters.trl.choice import ChosenIds
from adg_plugin.adapters.trl.plan import selection_config
from adg_plugin.errors import ConfigError, ModelError, StoreError

__all__ = ["tiny"]


def selecting(model, folder, config=SELECTION, peft=True, **settings):
    return ADGSFTTrainer(
        model=str(model),
        args=sft_config(folder, **settings),
        train_dataset=pool(),
        peft_config=lora() if peft else None,
        selection_config=config,
    )


def stock(model, folder, config=SELECTION, peft=True, **settings):
    args, rows = sft_config(folder, **settings), pool()
    trainer = SFTTrainer(model=str(model), args=args, train_dataset=rows, peft_config=lora() if peft else None)
    ADGSelectionCallback(trainer, train_dataset=rows, config=config)
    return trainer


def products(model):
    """Return a set that fills with what the products of the base's layers run in: while training?, weights, result."""
    seen = set()

    def keep(module, _inputs, output):
        seen.add((module.training, module.weight.dtype, output.dtype))

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in name:
            module.register_forward_hook(keep)
    return seen


def manifest(folder):
    return json.loads((folder / "_adg" / "selection" / "manifest.json").read_text())


@pytest.mark.parametrize("peft", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("make", [selecting, stock])
def test_a_model_that_is_trained_in_bfloat16_is_asked_in_it(make, peft, tiny, tmp_path, caplog):
    trainer = make(tiny, tmp_path, peft=peft, bf16=True, max_steps=1)
    seen = products(trainer.model)
    with caplog.at_level(logging.INFO, "adg_plugin"):
        trainer.train()
    half, whole = torch.bfloat16, torch.float32
    assert seen == {(False, half, half), (True, whole, half)}  # asked with copies; trained by autocast
    assert "the model's weights are in float32; answers are sampled in bfloat16" in caplog.text
    assert manifest(tmp_path)["config"]["dtype"] == manifest(tmp_path)["recipe"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("peft", [True, False], ids=["lora", "full"])
def test_training_goes_as_if_nothing_had_been_asked(peft, tiny, tmp_path):
    set_seed(0)  # TRL 1.9 makes the adapter before it sets the trainer's
    ours = selecting(tiny, tmp_path / "ours", peft=peft, bf16=True)
    ours.train()
    ids = ChosenIds.read(tmp_path / "ours" / "checkpoint-0").ids  # from the output folder
    rows = pool()
    set_seed(0)
    theirs = SFTTrainer(
        model=str(tiny),
        args=sft_config(tmp_path / "theirs", bf16=True),
        train_dataset=rows.select([n for n, word in enumerate(rows["id"]) if word in ids]),
        peft_config=lora() if peft else None,
    )
    theirs.train()
    assert len(losses(ours)) == 6
    assert losses(ours) == losses(theirs)
    for adapter in (False, True):
        found, expected = weights(ours, adapter=adapter), weights(theirs, adapter=adapter)
        assert found.keys() == expected.keys()
        assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_an_evaluation_before_it_changes_nothing(tiny, tmp_path):
    plain = selecting(tiny, tmp_path / "plain", peft=False, bf16=True, max_steps=1)
    plain.train()
    trainer = ADGSFTTrainer(
        model=str(tiny),
        args=sft_config(tmp_path / "evaluated", bf16=True, max_steps=1),
        train_dataset=pool(),
        eval_dataset=pool().select(range(2)),
        selection_config=SELECTION,
    )
    trainer.evaluate()  # accelerate puts autocast over the model's forward pass
    trainer.train()
    runs = [manifest(tmp_path / name) for name in ("plain", "evaluated")]
    assert runs[0]["score"] == runs[1]["score"]


@pytest.mark.parametrize(
    ("settings", "dtype", "expected"),
    [
        ({"bf16": True}, "float32", torch.float32),
        ({"bf16": False}, "auto", torch.float32),
        ({"bf16": False}, "bfloat16", torch.bfloat16),
        ({"bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}}, "auto", torch.bfloat16),
    ],
)
def test_a_dtype_that_is_named_is_taken(settings, dtype, expected, tiny, tmp_path):
    trainer = selecting(tiny, tmp_path, SELECTION.updated(dtype=dtype), max_steps=1, **settings)
    seen = products(trainer.model)
    trainer.train()
    assert {(weight, out) for training, weight, out in seen if not training} == {(expected, expected)}
    assert manifest(tmp_path)["recipe"]["dtype"] == dtype


def test_answers_of_two_precisions_are_not_mixed(tiny, tmp_path):
    selecting(tiny, tmp_path, max_steps=1).train()
    with pytest.raises(StoreError, match=r"was made with dtype 'auto' \(now 'bfloat16'\): go back to that"):
        selecting(tiny, tmp_path, bf16=True, max_steps=1).train()


def test_answers_that_are_there_need_no_copies(tiny, tmp_path, monkeypatch):
    selecting(tiny, tmp_path, bf16=True, max_steps=1).train()
    monkeypatch.setattr("adg_plugin.engines.models.inference_state.cast_weights", lambda *_: pytest.fail("cast again"))
    trainer = selecting(tiny, tmp_path, SELECTION.updated(budget=3), bf16=True, max_steps=1)
    trainer.train()
    assert trainer.selection_counts["chosen"] == 3


def test_a_model_in_memory_is_asked_in_the_dtype_that_is_named(tiny, tmp_path):
    quiet = {"show_progress": False}
    model, loaded = tiny_model(), AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    seen = products(model)
    half = SELECTION.updated(dtype="bfloat16")
    rows = select_dataset(pool(), model, tiny_tokenizer(), half, output_dir=tmp_path / "cast", **quiet)
    expected = select_dataset(pool(), loaded, tiny_tokenizer(), SELECTION, output_dir=tmp_path / "loaded", **quiet)
    assert {weight for _, weight, _ in seen} == {torch.bfloat16}
    assert model.dtype == torch.float32
    assert rows["id"] == expected["id"]
    for name in ("float16", "float32"):
        config = SELECTION.updated(dtype=name)
        told = rf"^dtype is '{name}', but the model that is trained is in bfloat16: leave it out$"
        with pytest.raises(ConfigError, match=told):
            select_dataset(pool(), loaded, tiny_tokenizer(), config, output_dir=tmp_path / name, **quiet)


def test_a_model_on_several_devices_is_refused_before_anything_is_asked(tiny, tmp_path):
    trainer = selecting(tiny, tmp_path)
    trainer.model.get_base_model().hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(ModelError, match=r"^the model is spread over 0, 1, as device_map='auto' does"):
        trainer.train()
    assert not (tmp_path / "_adg").exists()
    chosen = {"method": "random", "budget": 4}  # asks no model
    trainer = selecting(tiny, tmp_path, SELECTION.updated(**chosen), max_steps=1)
    trainer.model.get_base_model().hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    assert len(trainer.get_train_dataloader().dataset) == 4


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "bfloat16"),  # TRL's default is bf16
        ({"bf16": False}, "float32"),  # TRL's default is to load in it
        ({"bf16": True, "dtype": "float32"}, "float32"),
        ({"bf16": True, "dtype": "auto"}, "auto"),
        ({"fp16": True}, "float16"),
        ({"fp16": True, "adg": {"dtype": "float32"}}, "float32"),
        ({"adg": {"model": "small"}}, "auto"),  # another model than the one that is trained
    ],
)
def test_a_selection_by_itself_asks_in_the_precision_of_the_training(keys, expected, tmp_path):
    block = {"datasets": ["demo"], **keys.get("adg", {})}
    recipe = {"model_name_or_path": "demo", "use_cpu": True, **keys, "adg": block}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    assert selection_config(read_recipe(path), Path("run")).dtype == expected
