"""What tells weights apart, on the disk by every byte and in memory by every element."""

import json
import os
import shutil
from pathlib import Path

import peft
import pytest
import torch
from tiny_models import save_tiny_model, tiny_model

from adg_plugin import digests
from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models.fingerprint import fingerprint, weights_digest
from adg_plugin.errors import ModelError

pytestmark = pytest.mark.tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def remembered(tmp_path, monkeypatch):
    """A folder of digests for this test, in which files count as settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", -1)
    monkeypatch.setattr(digests, "_SMALL_BYTES", 0)
    monkeypatch.setattr(digests, "_BLOCK_BYTES", 1 << 12)
    return tmp_path / "cache" / "adg_plugin" / "digests.json"


def overwrite(path, place, count=1):
    """Change bytes in place, and put the time of the last change of content back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        found = file.read(count)
        file.seek(place)
        file.write(bytes(byte ^ 1 for byte in found))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "modeling_own.py", "model.safetensors.index.json", "config.json"]
)
@pytest.mark.parametrize("place", [0, 0.37, 0.999])
def test_a_byte_that_changes_in_place_changes_the_fingerprint(folder, remembered, name, place):
    (folder / "modeling_own.py").write_text("LAYERS = 2\n" * 100)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    first = fingerprint(ADGConfig(model=str(folder)))
    assert fingerprint(ADGConfig(model=str(folder))) == first
    assert str(folder / name) in json.loads(remembered.read_text())
    overwrite(folder / name, int((folder / name).stat().st_size * place))
    assert fingerprint(ADGConfig(model=str(folder))) != first


def test_a_file_that_was_hashed_once_is_not_read_again(folder, remembered, monkeypatch):
    first = fingerprint(ADGConfig(model=str(folder)))
    monkeypatch.setattr(digests, "_content", lambda path: pytest.fail(f"{path} was read again"))
    assert fingerprint(ADGConfig(model=str(folder))) == first


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b"\xff"])
def test_a_damaged_memory_of_digests_is_as_good_as_none(folder, remembered, content):
    first = fingerprint(ADGConfig(model=str(folder)))
    remembered.write_bytes(content)
    assert fingerprint(ADGConfig(model=str(folder))) == first


@pytest.mark.parametrize("error", [PermissionError(13, "read-only"), NotImplementedError("no flock here")])
def test_a_cache_that_cannot_be_locked_is_no_reason_to_fail(folder, remembered, monkeypatch, error):
    def refuse(self):
        raise error

    monkeypatch.setattr(digests.FileLock, "__enter__", refuse)
    assert fingerprint(ADGConfig(model=str(folder))) == fingerprint(ADGConfig(model=str(folder)))
    assert not remembered.exists()


def test_a_weight_file_that_cannot_be_read_is_an_error_of_the_model(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(digests, "_stats", refuse)
    with pytest.raises(ModelError, match=r"its model cannot be loaded \(\[Errno 13\] Permission denied"):
        fingerprint(ADGConfig(model=str(folder)))


def test_a_file_that_changed_just_now_is_not_remembered(folder, remembered, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_NS", 10**15)
    fingerprint(ADGConfig(model=str(folder)))
    assert not remembered.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_element_changes_the_digest_of_a_model_in_memory(dtype):
    first = weights_digest(tiny_model(dtype=dtype))
    for name, place in (("model.embed_tokens.weight", 777), ("model.norm.weight", 3), ("lm_head.weight", -1)):
        model = tiny_model(dtype=dtype)
        with torch.no_grad():
            model.get_parameter(name).view(-1)[place] += 1
        assert weights_digest(model) != first, name
    model = tiny_model(dtype=dtype)
    with torch.no_grad():
        rows = model.get_parameter("model.embed_tokens.weight")
        rows[[5, 9]] = rows[[9, 5]]
    assert weights_digest(model) != first


def test_the_digest_of_a_model_in_memory_follows_every_weight():
    first = weights_digest(tiny_model())
    assert weights_digest(tiny_model()) == first
    assert weights_digest(tiny_model(seed=1)) != first
    assert weights_digest(tiny_model(dtype=torch.bfloat16)) != first
    names = [name for name, _ in tiny_model().named_parameters()]
    for name in names[::7]:
        model = tiny_model()
        with torch.no_grad():
            model.get_parameter(name).mul_(1.01)
        assert weights_digest(model) != first, name


@pytest.mark.parametrize("dora", [False, True])
def test_the_digest_leaves_adapters_out(dora):
    model = tiny_model()
    first = weights_digest(model)
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False, use_dora=dora)
    adapted = peft.get_peft_model(model, settings)
    assert any("lora" in name for name, _ in adapted.named_parameters())
    assert weights_digest(adapted.get_base_model()) == first
    with torch.no_grad():
        adapted.get_base_model().get_parameter("model.layers.1.self_attn.q_proj.base_layer.weight").add_(0.1)
    assert weights_digest(adapted.get_base_model()) != first
