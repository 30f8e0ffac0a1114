"""From a configuration to a backbone: what goes wrong is said in full; what tells weights apart."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import EOS, LAYERS, save_tiny_model, tiny_model, tiny_tokenizer
from transformers import GenerationConfig

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.factory import make_engine
from adg_plugin.engines.models.fingerprint import fingerprint
from adg_plugin.engines.models.loading import Backbone, Source, end_tokens, load_backbone, pick_device
from adg_plugin.errors import ADGError, ConfigError, ModelError
from adg_plugin.store import keys

pytestmark = pytest.mark.tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit(path, **changes):
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in {**data, **changes}.items() if v is not None}))


def message(action, *args, **kwargs):
    with pytest.raises(ModelError) as caught:
        action(*args, **kwargs)
    assert isinstance(caught.value, ADGError)
    assert caught.value.exit_code == 2
    return str(caught.value)


def loading(folder, **settings):
    return message(load_backbone, ADGConfig(model=str(folder), device="cpu", **settings))


def test_a_saved_model_is_loaded_as_it_is(saved):
    backbone = load_backbone(ADGConfig(model=str(saved), device="cpu"))
    assert not backbone.model.training
    assert backbone.model.dtype == torch.float32
    assert backbone.eos_ids == (EOS,)
    ids = torch.arange(4, 40)[None]
    torch.testing.assert_close(backbone.model(ids).logits, tiny_model()(ids).logits)
    assert backbone.tokenizer("ab")["input_ids"] == tiny_tokenizer()("ab")["input_ids"]


@pytest.mark.parametrize(
    ("dtype", "found"), [("auto", torch.bfloat16), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_dtype_is_the_checkpoints_unless_named(dtype, found, tmp_path):
    folder = save_tiny_model(tmp_path, dtype=torch.bfloat16)
    assert load_backbone(ADGConfig(model=str(folder), dtype=dtype, device="cpu")).model.dtype == found


# --- models that are not there


def test_no_model_is_named():
    assert message(load_backbone, ADGConfig()) == (
        "model is missing: set it to the backbone that will be trained (a folder, a hub name, `demo`)"
    )
    assert message(Source.configured, ADGConfig()).startswith("model is missing")


@pytest.mark.parametrize("name", ["no/such-model", "./missing/folder"])
@pytest.mark.parametrize("action", [load_backbone, Source.configured, fingerprint])
def test_no_such_model(name, action):
    said = message(action, ADGConfig(model=name))
    what = "model" if action is fingerprint else "tokenizer"
    assert said.startswith(f"model is {name!r}: its {what} cannot be loaded (")
    assert said.endswith("): check the name; it is no folder here, so it was looked for on the hub")
    assert "\n" not in said


def test_a_folder_without_a_model(tmp_path):
    said = loading(tmp_path)
    assert said.startswith(f"model is {str(tmp_path)!r}: its tokenizer cannot be loaded (")
    assert said.endswith("): the folder has no config.json; give one that save_pretrained wrote, or a hub name")


def test_a_file_instead_of_a_folder(folder):
    said = loading(folder / "config.json")
    assert said.startswith(f"model is {str(folder / 'config.json')!r}: its tokenizer cannot be loaded (")


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    said = loading(folder)
    assert said.startswith(f"model is {str(folder)!r}: its model cannot be loaded (")
    assert "no file named model.safetensors" in said
    assert said.endswith("): give a folder that save_pretrained wrote, or a hub name")


@pytest.mark.parametrize("size", [0, 5, 1000, -100])
def test_weights_cut_short(folder, size):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:size])
    said = loading(folder)
    assert said.startswith(f"model is {str(folder)!r}: its model cannot be loaded (")
    assert said.endswith("): give a folder that save_pretrained wrote, or a hub name")


def test_weights_of_another_shape(folder):
    edit(folder / "config.json", hidden_size=96)
    said = loading(folder)
    assert said.startswith(f"model is {str(folder)!r}: its model cannot be loaded (")


def test_weights_of_another_model(folder, tmp_path):
    save_tiny_model(tmp_path / "other", "gpt2")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
    said = loading(folder)
    assert re.fullmatch(
        rf"model is {re.escape(repr(str(folder)))}: its weights do not fit its config \(\d+ are missing, "
        r"such as lm_head\.weight\): give a folder that save_pretrained wrote, or a hub name",
        said,
    )


def test_a_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{broken")
    assert loading(folder).startswith(f"model is {str(folder)!r}: its ")


def test_an_architecture_that_transformers_does_not_know(folder):
    edit(folder / "config.json", model_type="nonesuch", architectures=["NonesuchForCausalLM"])
    said = loading(folder)
    assert said.startswith(f"model is {str(folder)!r}: its ")
    assert "`nonesuch`" in said
    assert said.endswith(
        "): this transformers does not know the architecture: upgrade it, or set trust_remote_code: true"
    )


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    said = loading(folder)
    assert said.startswith(f"model is {str(folder)!r}: its ")
    assert said.endswith("): the folder has no config.json; give one that save_pretrained wrote, or a hub name")


def test_a_model_that_brings_its_own_code_says_so(folder):
    edit(folder / "config.json", model_type="nonesuch", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"})
    assert loading(folder).endswith("): it brings its own code; read it, and set trust_remote_code: true")


def test_a_model_without_room_says_so(folder, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    monkeypatch.setattr(type(tiny_model()), "from_pretrained", full)
    assert loading(folder) == (
        f"model is {str(folder)!r}: cpu has no room for its weights: use load_in_4bit: true, dtype: bfloat16 or a "
        "smaller model, or free the device"
    )


# --- the end of an answer


def bare_tokenizer():
    tokenizer = type(tiny_tokenizer())(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    assert tokenizer.eos_token_id is None
    return tokenizer


def test_no_end_of_answer_token(folder):
    edit(folder / "tokenizer_config.json", eos_token=None)
    edit(folder / "generation_config.json", eos_token_id=None)
    edit(folder / "config.json", eos_token_id=None)
    expected = f"{folder} names no end-of-answer token: set eos_token, such as `</s>`"
    assert loading(folder) == expected
    assert message(Source.configured, ADGConfig(model=str(folder))) == expected
    backbone = load_backbone(ADGConfig(model=str(folder), device="cpu", eos_token="<|endoftext|>"))
    assert backbone.eos_ids == (0,)


def test_no_end_of_answer_token_in_a_model_in_memory():
    model = tiny_model()
    model.generation_config = GenerationConfig()
    assert message(Source.loaded, model, bare_tokenizer(), ADGConfig()) == (
        "the model names no end-of-answer token: set eos_token, such as `</s>`"
    )


def test_an_end_of_answer_token_that_is_several():
    said = message(end_tokens, ADGConfig(eos_token="END"), tiny_tokenizer(), None)
    assert said == "eos_token is 'END': it is 3 tokens, name a single one"


@pytest.mark.parametrize(
    ("own", "eos_token", "found"),
    [(None, None, (2,)), (7, None, (2, 7)), ([9, 7], None, (2, 7, 9)), ([7], "<pad>", (2, 3, 7)), ([2], "a", (2, 68))],
)
def test_every_end_token_named_anywhere_ends_an_answer(own, eos_token, found):
    own = GenerationConfig(eos_token_id=own)
    a = tiny_tokenizer().convert_tokens_to_ids("a")
    expected = tuple(sorted({a if i == 68 else i for i in found}))
    assert end_tokens(ADGConfig(eos_token=eos_token), tiny_tokenizer(), own) == expected


# --- devices and layers


def test_a_device_that_is_not_there(saved):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    said = message(pick_device, "cuda:3")
    assert said.startswith("device is 'cuda:3': not available here (")
    assert said.endswith("); use auto or cpu")
    for name in ("cuda", "cuda:3", "mps", "xpu"):
        assert "\n" not in message(pick_device, name)
    with pytest.raises(ModelError, match="device is 'cuda': not available here"):
        load_backbone(ADGConfig(model=str(saved), device="cuda"))


def test_a_top_k_above_the_vocabulary(folder):
    config = ADGConfig(model=str(folder), top_k=261)
    expected = "top_k is 261: the model has 260 tokens; use fewer, or 0 for all"
    with pytest.raises(ConfigError) as caught:
        Source.configured(config)
    assert str(caught.value) == expected
    with pytest.raises(ConfigError) as caught:
        Source.loaded(tiny_model(), tiny_tokenizer(), config)
    assert str(caught.value) == expected
    Source.configured(config.updated(top_k=260))


@pytest.mark.parametrize("layers", [LAYERS + 1, 64])
def test_more_layers_than_the_model_has(layers):
    backbone = Backbone(tiny_model(), tiny_tokenizer(), (EOS,))
    assert message(make_engine, backbone, ADGConfig(layers=layers)) == (
        f"layers is {layers}: the model has {LAYERS} layers, use at most that"
    )


def test_a_model_too_small_for_reference_pooling():
    backbone = Backbone(tiny_model(num_hidden_layers=3), tiny_tokenizer(), (EOS,))
    assert message(make_engine, backbone, ADGConfig(layers=2, pooling="reference")) == (
        "pooling is reference: the model has 3 layers, 4 are needed; use pooling: answer"
    )


# --- what tells weights apart


def test_the_fingerprint_of_a_folder_follows_its_weights_and_config(folder, tmp_path):
    config = ADGConfig(model=str(folder))
    first = fingerprint(config)
    assert fingerprint(config) == first
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(ADGConfig(model=str(copy))) == first  # the same model elsewhere
    (copy / "README.md").write_text("about it")
    assert fingerprint(ADGConfig(model=str(copy))) == first
    edit(copy / "config.json", rope_theta=1.0)
    assert fingerprint(ADGConfig(model=str(copy))) != first
    save_tiny_model(folder, seed=1)
    assert fingerprint(config) != first


def test_quantisation_is_part_of_a_rows_key():
    ids = np.arange(5, dtype=np.int32)

    def key(**settings):
        recipe = keys.sampling_fingerprint(ADGConfig(**settings), model="m", eos_ids=(2,))
        return keys.row_key(keys.digest(recipe), ids, (1, 4))

    found = [
        key(),
        key(load_in_4bit=True),
        key(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
        key(load_in_4bit=True, bnb_4bit_use_double_quant=True),
        key(load_in_4bit=True, bnb_4bit_compute_dtype="float32"),
        key(dtype="float32"),
    ]
    assert len(set(found)) == len(found)
    assert key(bnb_4bit_quant_type="fp4") == key()  # without 4-bit it says nothing
