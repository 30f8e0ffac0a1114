"""`adg doctor` looks at the models and the file that a method other than ADG asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from tiny_runs import SETTINGS, save, write_jsonl

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models import loading
from adg_plugin.tools.doctor.checks import Check
from adg_plugin.tools.doctor.inputs import check_settings

pytestmark = pytest.mark.tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@pytest.fixture(autouse=True)
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model may be loaded for a check; the tiny models' tokens are bytes, of which a tagger's question has many."""
    monkeypatch.setattr("adg_plugin.selectors.mig.tagger.Tagger.max_prompt_tokens", 1400)
    monkeypatch.setattr(loading, "load_backbone", lambda *_, **__: pytest.fail("a model was loaded"))


def checks(name: str, model: Path, **settings: object) -> list[Check]:
    config = ADGConfig.parse({**SETTINGS, "model": str(model), **settings})
    return [check for check in check_settings(config) if check.name == name]


METHOD_OF = {"small_model": "superfiltering", "tagger": "mig", "quality_scorer": "mig"}


@pytest.mark.parametrize(("key", "method"), METHOD_OF.items())
def test_a_model_of_a_method_is_found_or_told_under_its_key(key, method, model, tmp_path):
    (check,) = checks(key, model, method=method, **{key: str(model)})
    assert (check.status, check.message) == (
        "ok",
        f"{model}: weights of 0.0 GiB, whole; its tokenizer has a chat template",
    )
    (check,) = checks(key, model, method=method, **{key: "me/not-there"})
    told = "me/not-there: no folder here, and the hub's cache does not have it; HF_HUB_OFFLINE is set"
    assert (check.status, check.message) == ("failed", told)
    assert check.fix == "download it once with HF_HUB_OFFLINE=0, or give a folder"
    cut = save(tmp_path / "cut")
    (cut / "model.safetensors").unlink()
    (check,) = checks(key, model, method=method, **{key: str(cut)})
    assert check.status == "failed"
    assert check.message.startswith(f"{key} is {str(cut)!r}: it holds no weights: ")


def test_the_backbones_method_looks_at_no_other_model(model):
    for name in (*METHOD_OF, "scar_model", "label_vectors"):
        assert checks(name, model, tagger="me/no", quality_scorer="me/no", label_vectors="no.jsonl") == []


def test_a_model_that_cannot_be_asked_fails(model, tmp_path):
    plain = save(tmp_path / "plain", max_position_embeddings=2048)
    (plain / "chat_template.jinja").unlink()
    (check,) = checks("tagger", model, method="mig", tagger=str(plain))
    assert check.status == "failed"
    assert check.message == f"tagger is {str(plain)!r}: its tokenizer has no chat template; name a chat model"
    short = save(tmp_path / "short", max_position_embeddings=128)
    (check,) = checks("quality_scorer", model, method="mig", quality_scorer=str(short))
    assert check.status == "failed"
    assert check.message.startswith(f"quality_scorer is {str(short)!r}: a question may take 128 tokens, and has ")


def test_online_a_hub_name_is_named_and_nothing_is_asked(model, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # in name only
    told = "me/tiny: no folder here, so a name on the hub: will be downloaded"
    assert checks("small_model", model, method="superfiltering", small_model="me/tiny") == [
        Check("small_model", "note", told)
    ]
    pytest.importorskip("style_ranker", reason="scar-tool is not installed")
    assert checks("scar_model", model, method="scar", scar_model="me/tiny") == [Check("scar_model", "note", told)]


def test_label_vectors_are_read(model, tmp_path):
    path = write_jsonl(tmp_path / "vectors.jsonl", [{"label": "a", "vector": [1.0, 0.0]}])
    (check,) = checks("label_vectors", model, method="mig", label_vectors=str(path))
    assert (check.status, check.message) == ("ok", f"{path}: vectors of 1 labels")
    (check,) = checks("label_vectors", model, method="mig", label_vectors="nope.parquet")
    assert check.status == "failed"
    assert check.message.startswith("label_vectors is 'nope.parquet': no such file; give a .parquet or .jsonl")


def test_a_ranker_is_looked_at_as_far_as_that_is_cheap(model, tmp_path):
    pytest.importorskip("style_ranker", reason="scar-tool is not installed")
    (check,) = checks("scar_model", model, method="scar", scar_model=str(model))
    assert check.status == "failed"
    assert check.message.startswith(
        f"scar_model is {str(model)!r}: the ranker cannot be loaded (its config.json names no encoder_name"
    )
    (check,) = checks("scar_model", model, method="scar", scar_model="me/no-ranker")
    assert (check.status, check.fix) == ("failed", "download it once with HF_HUB_OFFLINE=0, or give a folder")
    ranker = tmp_path / "ranker"
    ranker.mkdir()
    (ranker / "config.json").write_text(json.dumps({"encoder_name": str(model)}), encoding="utf-8")
    (check,) = checks("scar_model", model, method="scar", scar_model=str(ranker))
    assert check.status == "failed"
    assert check.message.startswith(f"scar_model is {str(ranker)!r}: it holds no weights: ")
    (ranker / "pytorch_model.bin").write_bytes(b"weights")
    (check,) = checks("scar_model", model, method="scar", scar_model=str(ranker))
    assert (check.status, check.message) == ("ok", f"{ranker}: a ranker, weights of 0.0 GiB")
