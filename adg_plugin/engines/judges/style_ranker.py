"""The ranker of `scar-tool`: instruction and answer -> how consistent the answer's style is.

The definition (arXiv 2406.10882) is that package's; nothing of it is written here again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from adg_plugin.data.cells import Reason
from adg_plugin.digests import files_digest
from adg_plugin.engines.judges.judge import Answer, Batches
from adg_plugin.engines.models.loading import LOADING_ERRORS, pick_device
from adg_plugin.errors import ModelError, first_line, need

MAX_TOKENS = 512  # of an instruction, and of an answer, as the published tool cuts them
EXAMPLE = "lizhuang144/scar-roberta-base"

_LOADING_ERRORS = (*LOADING_ERRORS, TypeError)  # the latter is `scar-tool`'s, for files of another model
_NEEDED_FILES = ("config.json", "pytorch_model.bin", "*token*", "vocab*", "merges.txt", "*.model")
_FIX = f"give a folder that holds the ranker, or the name of one on the hub, such as {EXAMPLE}"
_BATCH_ROWS = 32


@dataclass(frozen=True, slots=True)
class StyleRow:
    """An instruction and the reference response to it."""

    id: str
    instruction: str
    answer: str


class StyleRanker:
    """A ranker whose weights are loaded when they are needed.

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
            encoder = json.loads((self._folder / "config.json").read_text(encoding="utf-8")).get("encoder_name")
            if not isinstance(encoder, str):
                raise ValueError("its config.json names no encoder_name, so it is no ranker")
            about, _ = PreTrainedConfig.get_config_dict(encoder)
            if about.get("auto_map"):  # `scar-tool` trusts every encoder: it would run that code
                raise ModelError(
                    f"{self._named}: its encoder {encoder!r} brings its own code (trust_remote_code is about the "
                    f"backbone): use a ranker without, such as {EXAMPLE}"
                )
            files = {path for pattern in _NEEDED_FILES for path in self._folder.glob(pattern) if path.is_file()}
            self.identity = files_digest(sorted(files))  # the ranker's weights hold those of the encoder
        except _LOADING_ERRORS as err:
            raise self._unreadable(err) from err

    def inputs(self, rows: Sequence[StyleRow]) -> Iterator[Sequence[StyleRow] | str]:
        """Yield each row, or the reason why there is nothing to score."""
        for row in rows:
            if row.instruction.strip() and row.answer.strip():
                yield [row]
            else:
                yield (Reason.NO_ANSWER if row.instruction.strip() else Reason.NO_INSTRUCTION).value

    def load(self) -> StyleScores:
        """Return the ranker, in evaluation mode on its device; a ModelError if it cannot be loaded or is not whole."""
        ranker_class = import_module("style_ranker.ranker.model").StyleRanker
        try:
            # It prints what it loads, and which weights it has filled in at random.
            with redirect_stdout(StringIO()) as printed:
                ranker = ranker_class.from_pretrained(str(self._folder))
            tokenizer = AutoTokenizer.from_pretrained(self._folder)
        except _LOADING_ERRORS as err:
            raise self._unreadable(err) from err
        if "Missing keys" in printed.getvalue():
            raise ModelError(f"{self._named}: the ranker is not whole, its weights do not fit its config: {_FIX}")
        return StyleScores(ranker.to(pick_device(self._device)).eval(), tokenizer)

    def _unreadable(self, err: Exception) -> ModelError:
        return ModelError(f"{self._named}: the ranker cannot be loaded ({first_line(err)}): {_FIX}")


class StyleScores:
    """A ranker in memory. A row's score does not depend on the others, up to rounding."""

    def __init__(self, ranker: Any, tokenizer: Any) -> None:
        self._ranker, self._tokenizer = ranker, tokenizer
        # The widest first: by the characters of both texts.
        self.batches: Batches[StyleRow] = Batches(
            _BATCH_ROWS, lambda row: len(row.instruction) + len(row.answer), ranker.device, by_number=True
        )

    @torch.inference_mode()
    def answers(self, batch: Sequence[StyleRow]) -> list[Answer]:
        """Return the `score` of each row, any real number, higher is more consistent, and the tokens of both texts."""
        sides = [
            self._tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS).to(
                self._ranker.device
            )
            for texts in ([row.instruction for row in batch], [row.answer for row in batch])
        ]
        # Not the tool's own `score_pairs`: that fails where the last batch holds a single pair.
        given = [part for side in sides for part in (side["input_ids"], side["attention_mask"])]
        scores = self._ranker(*given).squeeze(1).cpu().double().tolist()
        tokens = (sides[0]["attention_mask"].sum(1) + sides[1]["attention_mask"].sum(1)).tolist()
        return [({"score": score}, count) for score, count in zip(scores, tokens, strict=True)]


def _folder(name: str) -> Path:
    """Return the folder with the ranker's files, fetched from the hub where it is no folder already.

    With a hub name in place of a folder, `scar-tool` 0.35 asks itself for the ranker's configuration without end, and
    uses an argument that transformers 5 no longer has.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=list(_NEEDED_FILES)))
