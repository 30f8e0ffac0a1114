"""Which model is evaluated: adapters, their bases, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_answers import right_choices, with_adapter
from paths import TASKS
from tiny_models import save_tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from adg_plugin.errors import ModelError
from adg_plugin.tools.evaluation import evaluate
from adg_plugin.tools.evaluation.evaluated_model import Place

needs_harness = pytest.mark.usefixtures("harness")


@needs_harness
@pytest.mark.tiny
def test_an_adapter_counts_from_a_folder_and_in_memory(adapter: Path, saved: Path) -> None:
    options: dict[str, Any] = {"tasks": ["tiny_capitals", "tiny_opposites"], "include": TASKS}
    base = evaluate(str(saved), **options)
    from_folder = evaluate(str(adapter), **options)
    in_memory = evaluate(with_adapter(adapter, saved), tokenizer=tiny_tokenizer(), name="mine", **options)
    merged = with_adapter(adapter, saved).merge_and_unload()
    expected = [right_choices(merged, tiny_tokenizer(), f"{name}.json") for name in ("capitals", "opposites")]
    assert [task.row_values for task in from_folder.tasks] == expected
    assert [task.row_values for task in in_memory.tasks] == expected
    assert [task.row_values for task in base.tasks] != expected
    assert in_memory.model["name"] == "mine"
    assert from_folder.model["weights"] == base.model["weights"]
    assert from_folder.model["adapter_weights"] != base.model["weights"]


@needs_harness
@pytest.mark.tiny
def test_an_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", hidden_size=24)
    with pytest.raises(ModelError) as caught:
        evaluate(str(adapter), base=str(other), tasks="tiny_capitals", include=TASKS)
    message = str(caught.value)
    assert message.startswith(f"adapter '{adapter}' does not go with '{other}' (size mismatch for base_model.")
    assert message.endswith("): name the base that it was trained on with --base")


@needs_harness
@pytest.mark.tiny
def test_an_adapter_with_more_tokens_than_its_base(tmp_path: Path, saved: Path) -> None:
    """As trainers leave it that added tokens: the embeddings are in the adapter."""
    peft = pytest.importorskip("peft")
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.add_tokens(["<new>", "<other>"], special_tokens=True)
    base = AutoModelForCausalLM.from_pretrained(saved)
    base.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        model.get_input_embeddings().weight[-2:].normal_(0, 1.0)
    folder = tmp_path / "grown"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = evaluate(str(folder), tasks="tiny_capitals", include=TASKS)["tiny_capitals"]
    assert found.row_values == right_choices(model.eval(), tokenizer, "capitals.json")


@needs_harness
@pytest.mark.tiny
def test_an_adapter_on_the_hub_brings_its_tokenizer_and_its_bases_revision(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    about = json.loads((adapter / "adapter_config.json").read_text())
    about |= {"base_model_name_or_path": "org/base", "revision": "old"}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.chat_template = "{{ messages[0]['content'] }}: "
    tokenizer.save_pretrained(adapter)
    in_cache(cache, "org/adapter", adapter, "main", "a" * 40)
    in_cache(cache, "org/base", tmp_path / "base", "old", "b" * 40)
    in_cache(cache, "org/base", save_tiny_model(tmp_path / "newest", hidden_size=24), "main", "c" * 40)
    found = evaluate("org/adapter", tasks="tiny_capitals", include=TASKS, chat_template=True)
    assert found.model["weights"] == f"org/base@{'b' * 40}"
    assert (found.model["revision"], found.model["adapter_weights"]) == ("old", f"org/adapter@{'a' * 40}")
    local = evaluate(
        str(adapter), base=str(tmp_path / "base"), tasks="tiny_capitals", include=TASKS, chat_template=True
    )
    assert found["tiny_capitals"].row_values == local["tiny_capitals"].row_values
    assert found["tiny_capitals"].digest == local["tiny_capitals"].digest


def in_cache(cache: Path, repository: str, folder: Path, revision: str, commit: str) -> None:
    """Put a folder into the hub's cache as it would be after a download."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    for name in ("config.json", "generation_config.json", "added_tokens.json", "special_tokens_map.json"):
        if not (folder / name).exists():  # was asked for, and is not there
            missing = place / ".no_exist" / commit / name
            missing.parent.mkdir(parents=True, exist_ok=True)
            missing.touch()


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    config = tmp_path / "adapter_config.json"
    assert Place.of(str(tmp_path)) == Place(str(tmp_path), "org/base", str(tmp_path), None, config)
    assert Place.of(str(tmp_path), "other").base == "other"


def test_an_adapters_revision_is_that_of_its_own_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "revision": "v2"}))
    assert Place.of(str(tmp_path)).revision == "v2"
    assert Place.of(str(tmp_path), "org/base").revision == "v2"
    assert Place.of(str(tmp_path), "other").revision is None
    assert Place.of(str(tmp_path), revision="v3").revision == "v3"
    assert Place.of("demo", revision="v3").revision == "v3"


def test_an_adapter_without_a_base_and_a_base_without_an_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        Place.of(str(tmp_path), "other")
    assert (
        str(caught.value) == f"base is 'other', and '{tmp_path}' is no adapter (no adapter_config.json): leave base out"
    )
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        Place.of(str(tmp_path))
    assert str(caught.value) == (
        f"adapter '{tmp_path}' does not name its base model (base_model_name_or_path): give it with --base"
    )
