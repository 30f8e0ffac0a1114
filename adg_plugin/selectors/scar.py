"""SCAR: instruction and answer -> how consistent the answer's style is, by the ranker of `scar-tool`.

The definition (arXiv 2406.10882) is that package's; nothing of it is written here again.
"""

from __future__ import annotations

import json
import pickle  # noqa: TID251  # its error only
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adg_plugin.errors import ModelError, need

Floats = npt.NDArray[np.float64]

# What transformers, the hub's client and `scar-tool` raise for files that are missing, damaged or of another model.
_LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    ImportError,
    RuntimeError,
    TypeError,
    EOFError,
    pickle.UnpicklingError,
)
_NEEDED_FILES = ("config.json", "pytorch_model.bin", "*token*", "vocab*", "merges.txt", "*.model")
_FIX = "give a folder that holds the ranker, or the name of one on the hub, such as lizhuang144/scar-roberta-base"


def scar_scores(
    pairs: Sequence[tuple[str, str]],
    model: str,
    *,
    batch_size: int = 32,
    max_tokens: int = 512,
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Floats:
    """Return the ranker's score of each pair of instruction and answer; higher is more consistent.

    Pairs of like length are scored together; a pair's score does not depend on the others, up to rounding.

    Args:
        pairs: (N,) instruction and answer; neither is empty.
        model: folder or hub name of a trained ranker.
        batch_size: pairs at a time.
        max_tokens: of an instruction, and of an answer; the rest is cut off, as the published tool does at 512.
        device: as torch names it; `auto` is the accelerator, where there is one.
        revision: of the ranker on the hub.
        trust_remote_code: whether the ranker's encoder may bring code of its own. `scar-tool` always lets it, so an
            encoder that does is refused here unless this is set.
        advance: called with the number of pairs scored, after each batch.

    Returns:
        (N,), any real number; NaN or infinite where the ranker gave that: reject such a row.

    Raises:
        MissingExtraError: `scar-tool` is not installed.
        ModelError: the ranker or its encoder cannot be loaded, is not whole, or brings code that is not trusted.
        ValueError: an instruction or an answer is empty.

    Source: arXiv 2406.10882.
    """
    for row, (instruction, answer) in enumerate(pairs):
        if not instruction.strip() or not answer.strip():
            which = "answer" if instruction.strip() else "instruction"
            raise ValueError(f"pair {row} has no {which}: reject it before scoring")
    ranker, tokenizer = _load(model, revision, trust_remote_code)

    import torch

    from adg_plugin.engines.loading import pick_device

    where = pick_device(device)
    ranker.to(where).eval()
    scores = np.full(len(pairs), np.nan)
    longest_first = np.argsort([-len(instruction) - len(answer) for instruction, answer in pairs], kind="stable")
    for start in range(0, len(pairs), batch_size):
        rows = longest_first[start : start + batch_size]
        sides = [
            tokenizer(
                [pairs[row][side] for row in rows],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=max_tokens,
            ).to(where)
            for side in (0, 1)
        ]
        with torch.inference_mode():
            # Not the tool's own `score_pairs`: that fails where the last batch holds a single pair.
            given = [part for side in sides for part in (side["input_ids"], side["attention_mask"])]
            scores[rows] = ranker(*given).float().squeeze(1).cpu().numpy()
        if advance:
            advance(len(rows))
    return scores


def _load(model: str, revision: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return the ranker and its tokenizer."""
    need("style_ranker", extra="scar", why="method: scar")
    ranker_class = import_module("style_ranker.ranker.model").StyleRanker

    from transformers import AutoTokenizer

    try:
        folder = _folder(model, revision)
        encoder = _encoder_name(folder)
        if not trust_remote_code:
            _refuse_code(model, encoder)
        # It says on stdout what it loads, and which weights it has filled in at random.
        with redirect_stdout(StringIO()) as said:
            ranker = ranker_class.from_pretrained(str(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except _LOADING_ERRORS as err:
        first = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise ModelError(f"the SCAR ranker {model!r} cannot be loaded ({first}): {_FIX}") from err
    if "Missing keys" in said.getvalue():
        raise ModelError(f"the SCAR ranker {model!r} is not whole: its weights do not fit its config; {_FIX}")
    return ranker, tokenizer


def _folder(model: str, revision: str | None) -> Path:
    """Return the folder with the ranker's files, fetched from the hub where it is no folder already.

    With a hub name in place of a folder, `scar-tool` 0.35 asks itself for the ranker's configuration without end, and
    uses an argument that transformers 5 no longer has.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, allow_patterns=list(_NEEDED_FILES)))


def _encoder_name(folder: Path) -> str:
    """Return folder or hub name of the encoder that the ranker is made of.

    Raises:
        ValueError: the folder holds something else.
    """
    name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("encoder_name")
    if not isinstance(name, str):
        raise ValueError("its config.json names no encoder_name, so it is no ranker")
    return name


def _refuse_code(model: str, encoder: str) -> None:
    """Raise where transformers would run code that comes with the encoder."""
    from transformers import PreTrainedConfig

    about, _ = PreTrainedConfig.get_config_dict(encoder)
    if about.get("auto_map"):
        raise ModelError(
            f"the SCAR ranker {model!r} has the encoder {encoder!r}, which brings its own code: read it, and set "
            "trust_remote_code: true, or use a ranker without, such as lizhuang144/scar-roberta-base"
        )
