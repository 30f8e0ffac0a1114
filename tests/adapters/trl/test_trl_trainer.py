import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from tiny_models import save_tiny_model, tiny_model, tiny_tokenizer
from trl import SFTTrainer
from trl_runs import (
    MARKED_TEMPLATE,
    SELECTION,
    WORDS,
    lora,
    losses,
    pool,
    record,
    sft_config,
    tiny,
    weights,
    words_in,
)

from adg_plugin import ADGSelectionCallback, ADGSFTTrainer, select_dataset
from adg_plugin.adapters.trl import choice as trl_choice
from adg_plugin.engines.models.inference_state import inference_state
from adg_plugin.errors import ADGError, ConfigError, DataError, StoreError

__all__ = ["tiny"]


def selecting(model, folder, rows=None, config=SELECTION, peft=True, **settings):
    return ADGSFTTrainer(
        model=str(model) if isinstance(model, Path) else model,
        args=sft_config(folder, **settings),
        train_dataset=pool() if rows is None else rows,
        processing_class=None if isinstance(model, Path) else tiny_tokenizer(),
        peft_config=lora() if peft else None,
        selection_config=config,
    )


def stock(model, folder, rows=None, config=SELECTION, **settings):
    rows = pool() if rows is None else rows
    trainer = SFTTrainer(model=str(model), args=sft_config(folder, **settings), train_dataset=rows, peft_config=lora())
    ADGSelectionCallback(trainer, train_dataset=rows, config=config)
    return trainer


@pytest.fixture(scope="module")
def chosen(tiny, tmp_path_factory):
    """Words of the rows that the tiny model chooses, by the way that involves no trainer."""
    rows = select_dataset(
        pool(),
        tiny_model(),
        tiny_tokenizer(),
        SELECTION,
        output_dir=tmp_path_factory.mktemp("run"),
        show_progress=False,
    )
    return set(rows["id"])


@pytest.mark.parametrize("make", [selecting, stock])
def test_training_sees_exactly_the_chosen_rows(make, tiny, tmp_path, chosen):
    trainer = make(tiny, tmp_path)
    base, adapter = weights(trainer, adapter=False), weights(trainer, adapter=True)
    seen = record(trainer)
    trainer.train()
    assert len(chosen) == SELECTION.budget < len(WORDS)
    assert words_in(seen) == chosen
    assert len(seen) == 2 * len(chosen)  # two epochs
    assert trainer.state.max_steps == trainer.state.global_step == 6
    assert trainer.state.log_history[-2]["learning_rate"] == pytest.approx(1e-2 / 6)  # decays over these steps
    assert all(torch.equal(weight, base[name]) for name, weight in weights(trainer, adapter=False).items())
    assert any(not torch.equal(weight, adapter[name]) for name, weight in weights(trainer, adapter=True).items())


def test_the_selection_leaves_training_as_it_would_be_on_the_chosen_rows_alone(tiny, tmp_path, chosen):
    ours = selecting(tiny, tmp_path / "ours")
    ours.train()
    rows = pool()
    theirs = SFTTrainer(
        model=str(tiny),
        args=sft_config(tmp_path / "theirs"),
        train_dataset=rows.select([i for i, word in enumerate(rows["id"]) if word in chosen]),
        peft_config=lora(),
    )
    theirs.train()
    assert losses(ours) == losses(theirs)


@pytest.mark.parametrize("layout", ["alpaca", "messages", "sharegpt", "text"])
def test_every_layout_trains_on_its_chosen_rows(layout, tiny, tmp_path):
    trainer = selecting(tiny, tmp_path, pool(layout))
    seen = record(trainer)
    trainer.train()
    ids = trl_choice.ChosenIds.read(tmp_path / "checkpoint-0").ids  # from the output folder
    assert words_in(seen) == set(ids)
    if layout == "alpaca":
        assert all("Say something about the input\n\n" in text for text in seen)
    if layout != "text":
        assert all(text.startswith("<|im_start|>user\n") for text in seen)


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({"packing": True, "max_length": 64}, 6),
        ({"padding_free": True, "max_length": None}, 6),
        ({"completion_only_loss": True}, 6),
        ({"assistant_only_loss": True}, 6),
        ({"max_length": 70}, 6),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_the_trainers_ways_of_preparing_rows_keep_working(settings, trained, tiny, tmp_path):
    tokenizer = tiny_tokenizer()
    if "assistant_only_loss" in settings:
        (tmp_path / "t.jinja").write_text(MARKED_TEMPLATE)
        settings = {**settings, "chat_template_path": str(tmp_path / "t.jinja")}
    rows = pool("messages" if "assistant_only_loss" in settings else "prompt_completion")
    trainer = ADGSFTTrainer(
        model=str(tiny),
        args=sft_config(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=2, **settings),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        peft_config=lora(),
        selection_config=SELECTION,
    )
    trainer.train()
    assert trainer.selection_counts["chosen"] == 6
    assert trainer.selection_counts["trained"] == trained
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    labels = [row["labels"] for row in trainer.train_dataset]
    if settings.keys() & {"completion_only_loss", "assistant_only_loss"}:
        assert all(tokenizer.decode([t for t in row if t >= 0]).startswith("All ") for row in labels)


@pytest.mark.parametrize("template", ["alpaca", "alpaca-paper"])
def test_text_prompts_are_trained_as_they_were_asked_token_for_token(template, tiny, tmp_path):
    trainer = selecting(tiny, tmp_path, pool("alpaca"), SELECTION.updated(template=template))
    trainer.train()
    tokenizer = tiny_tokenizer()
    rows = pq.read_table(tmp_path / "_adg/selection/prompts.parquet").to_pylist()
    asked = {row["id"]: [*row["token_ids"], *tokenizer(row["reference"])["input_ids"]] for row in rows}
    starts = {tuple(asked[row["id"]]): len(row["token_ids"]) for row in rows}
    assert all(row["text"].endswith("### Response:" + "\n" * (template == "alpaca")) for row in rows)
    for batch in trainer.get_train_dataloader():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            trained, end = ids[mask.bool()].tolist(), int(mask.sum())
            start = starts[tuple(trained[:-1])]
            assert trained[-1] == tokenizer.eos_token_id
            assert labels[:start].eq(-100).all()
            assert labels[start:end].tolist() == trained[start:]


def test_rows_that_training_drops_are_logged(tiny, tmp_path, caplog, chosen):
    words = (*WORDS[:8], *(f"{word} {'x' * 60}" for word in WORDS[8:]))
    config = SELECTION.updated(budget=12)
    trainer = selecting(tiny, tmp_path, pool(words=words), config, max_length=70, completion_only_loss=True)
    with caplog.at_level(logging.WARNING, "adg_plugin"):
        trainer.train()
    assert trainer.selection_counts == {"pool": 12, "chosen": 12, "trained": 8}
    assert "12 rows chosen, 8 trained: 4 had no trained token left after truncation to max_length (70)" in caplog.text


def test_nothing_left_to_train_on_stops(tiny, tmp_path):
    with pytest.raises(DataError, match=r"none of the 6 chosen rows is left .* max_length \(10\); raise it"):
        selecting(tiny, tmp_path, max_length=10).train()


def test_no_eligible_row_stops(tiny, tmp_path):
    trainer = selecting(tiny, tmp_path, config=SELECTION.updated(max_prompt_tokens=5))
    with pytest.raises(DataError, match="none of the 12 rows can be sampled"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("make", [selecting, stock])
def test_resuming_trains_on_the_checkpoints_rows_and_selects_nothing(make, tiny, tmp_path, monkeypatch, chosen):
    whole = make(tiny, tmp_path, save_strategy="steps", save_steps=2)
    whole.train()
    shutil.rmtree(tmp_path / "_adg/selection")
    monkeypatch.setattr(trl_choice, "choose_in_memory", lambda *_, **__: pytest.fail("selected again"))
    resumed = make(tiny, tmp_path, config=SELECTION.updated(budget=3), save_strategy="steps", save_steps=2)
    shutil.rmtree(tmp_path / "checkpoint-6")
    seen = record(resumed)
    resumed.train(resume_from_checkpoint=True)  # the last one, of step 4
    assert words_in(seen) <= chosen
    assert len(seen) == 4
    assert resumed.state.max_steps == 6
    assert losses(resumed) == losses(whole)


def test_a_checkpoint_without_its_ids_takes_those_of_the_output_folder(tiny, tmp_path, chosen):
    selecting(tiny, tmp_path, save_strategy="steps", save_steps=4).train()
    (tmp_path / "checkpoint-4" / trl_choice.CHOSEN).unlink()  # killed just before it was written
    resumed = selecting(tiny, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.selection_counts["chosen"] == len(chosen)


def test_a_checkpoint_of_changed_or_other_rows_is_refused(tiny, tmp_path):
    selecting(tiny, tmp_path, save_strategy="steps", save_steps=4).train()
    changed = pool().map(lambda row: {"completion": [{"role": "assistant", "content": "other"}]})
    with pytest.raises(DataError, match="have changed in the data set since"):
        selecting(tiny, tmp_path, changed).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    with pytest.raises(DataError, match="train on the data set that they were chosen from"):
        selecting(tiny, tmp_path, pool(words=("a", "b", "c"))).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-4")
        )
    (tmp_path / "checkpoint-4" / trl_choice.CHOSEN).unlink()
    (tmp_path / trl_choice.CHOSEN).unlink()
    with pytest.raises(DataError, match="it was not trained on a selection"):
        selecting(tiny, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_the_adapter_is_off_while_the_model_is_asked(tmp_path, chosen):
    from peft import get_peft_model

    adapted = get_peft_model(tiny_model(), lora(init_lora_weights=False))
    rows = select_dataset(pool(), adapted, tiny_tokenizer(), SELECTION, output_dir=tmp_path, show_progress=False)
    assert set(rows["id"]) == chosen


def test_a_borrowed_model_comes_back_as_it_was():
    from peft import get_peft_model

    model = get_peft_model(tiny_model(), lora())
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    model.base_model.model.model.layers[0].eval()
    next(w for name, w in model.named_parameters() if "lora_A" in name).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    grads = [weight.requires_grad for weight in model.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with inference_state(model) as base:
        assert not base.training
        assert not any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
        assert base.config.use_cache
        torch.rand(3), np.random.rand(), random.random()
        raise_later = base
    assert [module.training for module in model.modules()] == modes
    assert [weight.requires_grad for weight in model.parameters()] == grads
    assert model.base_model.model.model.gradient_checkpointing
    assert raise_later is model.get_base_model()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_another_budget_asks_nothing_again(tmp_path, monkeypatch):
    model = tiny_model()
    arguments = {"output_dir": tmp_path, "show_progress": False}
    few = select_dataset(
        pool(), model, tiny_tokenizer(), SELECTION.updated(budget=2, device="cuda:7"), **arguments
    )  # its own device counts
    monkeypatch.setattr("adg_plugin.engines.factory.make_engine", lambda *_: pytest.fail("asked again"))
    many = select_dataset(pool(), model, tiny_tokenizer(), SELECTION.updated(budget=9), **arguments)
    assert set(few["id"]) < set(many["id"])
    assert len(many) == 9
    assert many.column_names == pool().column_names


def test_a_run_folder_of_another_model_or_other_settings_is_refused(tiny, tmp_path):
    selecting(tiny, tmp_path, max_steps=1).train()
    with pytest.raises(StoreError, match=r"was made with temperature 1\.4 \(now 1\.0\): go back to that, give another"):
        selecting(tiny, tmp_path, config=SELECTION.updated(temperature=1.0)).train()
    with pytest.raises(StoreError, match=r"was made with model .* whose weights differ"):
        selecting(tiny_model(seed=1), tmp_path).train()


def test_a_callback_that_is_not_bound_stops_training(tiny, tmp_path):
    trainer = SFTTrainer(
        model=str(tiny), args=sft_config(tmp_path), train_dataset=pool(), callbacks=[ADGSelectionCallback()]
    )
    with pytest.raises(ADGError, match="has no trainer, so every row would be trained on"):
        trainer.train()
    assert trainer.state.global_step == 0
    other = stock(tiny, tmp_path)
    stray = next(c for c in other.callback_handler.callbacks if isinstance(c, ADGSelectionCallback))
    trainer = SFTTrainer(model=str(tiny), args=sft_config(tmp_path), train_dataset=pool(), callbacks=[stray])
    with pytest.raises(ADGError, match="bound to another trainer than the one that trains"):
        trainer.train()


def test_a_selecting_trainer_needs_its_configuration(tiny, tmp_path):
    with pytest.raises(ConfigError, match="selection_config is None: pass an ADGConfig"):
        ADGSFTTrainer(model=str(tiny), args=sft_config(tmp_path), train_dataset=pool())


def test_settings_that_contradict_the_model_are_told_at_once(tiny, tmp_path):
    config = SELECTION.updated(load_in_4bit=True, dtype="float16", model="other/model")
    with pytest.raises(ConfigError) as caught:
        selecting(tiny, tmp_path, config=config, model_init_kwargs={"dtype": "bfloat16"}).train()
    told = "\n".join(caught.value.problems)
    for name in ("load_in_4bit", "dtype", "model is 'other/model'"):
        assert name in told


def test_four_bit_weights_train_a_lora(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    # On a CPU, bitsandbytes wants widths of whole blocks.
    folder = save_tiny_model(tmp_path / "model", hidden_size=128, intermediate_size=128, num_attention_heads=4)
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    trainer = ADGSFTTrainer(
        model=str(folder),
        args=sft_config(tmp_path, max_steps=1, model_init_kwargs={"quantization_config": quantized}),
        train_dataset=pool(),
        peft_config=lora(),
        selection_config=SELECTION,
    )
    trainer.train()
    assert trainer.selection_counts == {"pool": 12, "chosen": 6, "trained": 6}


def test_a_mixture_of_layouts_becomes_prompts_and_completions():
    from adg_plugin.adapters.trl.choice import PoolForm

    first, second = pool("messages")[0], pool("alpaca")[1]
    mixed = Dataset.from_list([{**dict.fromkeys(second), **first}, {**dict.fromkeys(first), **second}])
    rows = PoolForm(mixed, "auto").rows(mixed, tiny_tokenizer())
    assert [row["prompt"][0]["content"] for row in rows] == [
        "Say something about cats",
        "Say something about the input\n\ndogs",
    ]
    assert [row["completion"][0]["content"] for row in rows] == ["All cats!", "All dogs!"]


def test_a_pool_of_mixed_layouts_is_trained_on_its_answers_alone(tiny, tmp_path):
    turns, plain = pool("messages"), pool("alpaca")
    empty = dict.fromkeys([*turns[0], *plain[0]])
    rows = Dataset.from_list([{**empty, **(turns if n % 2 == 0 else plain)[n]} for n in range(len(turns))])
    trainer = selecting(tiny, tmp_path, rows)  # the first row is a conversation
    trainer.train()
    assert trainer.selection_counts == {"pool": 12, "chosen": 6, "trained": 6}
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["labels"] == -100).any()
    trained = [tiny_tokenizer().decode(row[row != -100]) for row in batch["labels"]]
    assert all(text.startswith("All ") for text in trained), trained


def test_rows_in_memory_cannot_have_their_columns_named_for_a_trainer(tiny, tmp_path):
    config = SELECTION.updated(datasets=[{"path": "memory", "field_output": "answer"}])
    with pytest.raises(ConfigError, match="datasets is set, but the pool is the trainer's data set: leave it out"):
        selecting(tiny, tmp_path, config=config)


def test_a_base_model_without_a_chat_template_is_evaluated_too(tmp_path):
    model = save_tiny_model(tmp_path / "base")
    (model / "chat_template.jinja").unlink()
    trainer = ADGSFTTrainer(
        model=str(model),
        args=sft_config(tmp_path / "out", eval_strategy="epoch"),
        train_dataset=pool("alpaca"),
        eval_dataset=pool("alpaca", WORDS[:3]),
        peft_config=lora(),
        selection_config=SELECTION,
    )
    trainer.train()
    assert "eval_loss" in str(trainer.state.log_history)
    assert "### Instruction:" in tiny_tokenizer().decode(trainer.eval_dataset[0]["input_ids"])


def test_a_trainer_that_has_chosen_does_not_resume_from_other_rows(tiny, tmp_path):
    selecting(tiny, tmp_path / "a", save_strategy="steps", save_steps=4, config=SELECTION.updated(budget=4)).train()
    trainer = selecting(tiny, tmp_path / "b")
    trainer.get_train_dataloader()
    with pytest.raises(DataError, match="was trained on other rows than this trainer has chosen already"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))


def test_the_last_checkpoint_is_one_of_the_rows_chosen_last(tiny, tmp_path):
    selecting(tiny, tmp_path, save_strategy="steps", save_steps=6).train()
    shutil.copytree(tmp_path / "checkpoint-6", tmp_path / "checkpoint-6-backup")  # somebody's own
    assert trl_choice.last_whole_checkpoint(tmp_path).name == "checkpoint-6"
    selecting(tiny, tmp_path, save_strategy="steps", save_steps=2, config=SELECTION.updated(budget=4)).train()
    assert trl_choice.last_whole_checkpoint(tmp_path).name == "checkpoint-4"


def test_packing_trains_on_the_chosen_rows_in_fewer_sequences(tiny, tmp_path, chosen):
    trainer = selecting(tiny, tmp_path, packing=True, max_length=256, padding_free=False)
    seen = record(trainer)
    trainer.train()
    counts = trainer.selection_counts
    assert words_in(seen) == chosen
    assert (counts["chosen"], counts["trained"]) == (6, 6)
    assert counts["sequences"] == len(trainer.train_dataset) < 6
    assert trainer.state.max_steps == 2 * -(-counts["sequences"] // 2)
