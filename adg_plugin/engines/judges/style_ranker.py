"""The ranker of `scar-tool`: instruction and answer -> how consistent the answer's style is.

The definition (arXiv 2406.10882) is that package's; nothing of it is written here again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from adg_plugin.data.layouts import Reason
from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY
from adg_plugin.engines.judges.batches import Batches
from adg_plugin.engines.models.fingerprint import sample_file
from adg_plugin.engines.models.loading import LOADING_ERRORS, pick_device
from adg_plugin.errors import ModelError, need

MAX_TOKENS = 512  # of an instruction, and of an answer, as the published tool cuts them
EXAMPLE = "lizhuang144/scar-roberta-base"

_LOADING_ERRORS = (*LOADING_ERRORS, TypeError)  # the latter is `scar-tool`'s, for files of another model
_NEEDED_FILES = ("config.json", "pytorch_model.bin", "*token*", "vocab*", "merges.txt", "*.model")
_FIX = f"give a folder that holds the ranker, or the name of one on the hub, such as {EXAMPLE}"
_WINDOW_ROWS = 256  # sorted by length together
_BATCH_ROWS = 32


@dataclass(frozen=True, slots=True)
class StyleRow:
    """An instruction and the reference response to it."""

    id: str
    key: bytes  # 16-byte hash of all that produces the result
    instruction: str
    answer: str


@dataclass(frozen=True, slots=True)
class StyleResult:
    """The ranker's score of a row. With a `reason` there is none."""

    id: str
    key: bytes
    score: float | None  # any real number; higher is more consistent
    tokens: int  # that were read, of both texts; 0 with a `reason`
    reason: str | None = None


class StyleRanker:
    """Scores rows in batches. The weights are loaded for the first of them.

    Args:
        name: folder or hub name of a trained ranker.
        device: as torch names it; `auto` is the accelerator, where there is one.

    Raises:
        MissingExtraError: `scar-tool` is not installed.
        ModelError: it is no ranker, cannot be fetched, or its encoder brings code of its own: `scar-tool` would run it.

    Attributes:
        identity: what tells the ranker from all others.
    """

    def __init__(self, name: str, device: str = "auto") -> None:
        need("style_ranker", extra="scar", why="method: scar")
        self._named, self._device = f"scar_model is {name!r}", device
        try:
            self._folder = _folder(name)
            encoder = _encoder_name(self._folder)
            self._refuse_code(encoder)
            self.identity = _identity(self._folder)
        except _LOADING_ERRORS as err:
            raise self._unreadable(err) from err

    def run(self, rows: Iterable[StyleRow]) -> Iterator[StyleResult]:
        """Yield a result for each row, 256 rows at a time by length, those that cannot be scored with a reason.

        A row's score does not depend on the others, up to rounding.

        Raises:
            ModelError: the ranker cannot be loaded, or is not whole.
        """
        ranker, tokenizer = self._load()
        batches = Batches(_BATCH_ROWS, ranker.device)
        remaining = iter(rows)
        while window := list(islice(remaining, _WINDOW_ROWS)):
            whole = []
            for row in window:
                if row.instruction.strip() and row.answer.strip():
                    whole.append(row)
                else:
                    lacks = Reason.NO_ANSWER if row.instruction.strip() else Reason.NO_INSTRUCTION
                    yield StyleResult(row.id, row.key, None, 0, lacks.value)
            whole.sort(key=lambda row: len(row.instruction) + len(row.answer), reverse=True)
            for some, found in batches.run(whole, lambda _: 1, lambda some: _scores(ranker, tokenizer, some)):
                # A row without a result is alone in its batch.
                yield from found or [StyleResult(some[0].id, some[0].key, None, 0, OUT_OF_MEMORY)]

    def _load(self) -> tuple[Any, Any]:
        """Return the ranker, in evaluation mode on its device, and its tokenizer."""
        from transformers import AutoTokenizer

        ranker_class = import_module("style_ranker.ranker.model").StyleRanker
        try:
            # It says on stdout what it loads, and which weights it has filled in at random.
            with redirect_stdout(StringIO()) as said:
                ranker = ranker_class.from_pretrained(str(self._folder))
            tokenizer = AutoTokenizer.from_pretrained(self._folder)
        except _LOADING_ERRORS as err:
            raise self._unreadable(err) from err
        if "Missing keys" in said.getvalue():
            raise ModelError(f"{self._named}: the ranker is not whole, its weights do not fit its config: {_FIX}")
        return ranker.to(pick_device(self._device)).eval(), tokenizer

    def _refuse_code(self, encoder: str) -> None:
        """Raise where `scar-tool` would run code that comes with the encoder: it trusts every encoder."""
        from transformers import PreTrainedConfig

        about, _ = PreTrainedConfig.get_config_dict(encoder)
        if about.get("auto_map"):
            raise ModelError(
                f"{self._named}: its encoder {encoder!r} brings its own code (trust_remote_code is about the "
                f"backbone): use a ranker without, such as {EXAMPLE}"
            )

    def _unreadable(self, err: Exception) -> ModelError:
        first = (str(err).strip() or type(err).__name__).splitlines()[0]
        return ModelError(f"{self._named}: the ranker cannot be loaded ({first}): {_FIX}")


@torch.inference_mode()
def _scores(ranker: Any, tokenizer: Any, rows: Sequence[StyleRow]) -> list[StyleResult]:
    sides = [
        tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS).to(ranker.device)
        for texts in ([row.instruction for row in rows], [row.answer for row in rows])
    ]
    # Not the tool's own `score_pairs`: that fails where the last batch holds a single pair.
    given = [part for side in sides for part in (side["input_ids"], side["attention_mask"])]
    scores = ranker(*given).squeeze(1).cpu().double()
    tokens = (sides[0]["attention_mask"].sum(1) + sides[1]["attention_mask"].sum(1)).tolist()
    return [
        StyleResult(row.id, row.key, score, count) if is_finite else StyleResult(row.id, row.key, None, 0, NON_FINITE)
        for row, score, count, is_finite in zip(rows, scores.tolist(), tokens, scores.isfinite().tolist(), strict=True)
    ]


def _folder(name: str) -> Path:
    """Return the folder with the ranker's files, fetched from the hub where it is no folder already.

    With a hub name in place of a folder, `scar-tool` 0.35 asks itself for the ranker's configuration without end, and
    uses an argument that transformers 5 no longer has.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=list(_NEEDED_FILES)))


def _encoder_name(folder: Path) -> str:
    """Return folder or hub name of the encoder that the ranker is made of.

    Raises:
        ValueError: the folder holds something else.
    """
    name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("encoder_name")
    if not isinstance(name, str):
        raise ValueError("its config.json names no encoder_name, so it is no ranker")
    return name


def _identity(folder: Path) -> str:
    """Return a digest of the ranker's files: its weights hold those of the encoder."""
    digest = hashlib.blake2b(digest_size=16)
    files = {path for pattern in _NEEDED_FILES for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(files):
        sample_file(digest, path)
    return digest.hexdigest()
