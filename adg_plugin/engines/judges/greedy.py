"""Prompts -> a model's likeliest answer to each, token by token, in batches; for what is asked of a model in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.data.prompts import Rendered
from adg_plugin.engines.judges.batches import Batches
from adg_plugin.engines.judges.judge import Answer
from adg_plugin.engines.models.inference_state import replaced

_CPU_TOKENS, _ACCELERATOR_TOKENS = 8192, 32768  # of a batch


class GreedyAnswers:
    """Answers with the model's own `generate`, without sampling, rows of similar length together.

    Padding changes the order of sums: of two tokens that are equally likely the other may come.

    Args:
        model: a causal language model in evaluation mode.
        batch_tokens: of a batch, padding and answers included; halved when memory runs out. Default: by the device.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int],
        *,
        max_new_tokens: int,
        batch_tokens: int | None = None,
    ) -> None:
        self._model, self._tokenizer, self._eos = model, tokenizer, sorted(eos_ids)
        self._new_tokens = max_new_tokens
        self._settings = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=self._eos, pad_token_id=self._eos[0]
        )
        self.batches = Batches.of_tokens(batch_tokens, model.device, cpu=_CPU_TOKENS, accelerator=_ACCELERATOR_TOKENS)

    def width(self, question: Rendered) -> int:
        """Return the tokens of the question and of the longest answer."""
        return len(question.token_ids) + self._new_tokens

    @torch.no_grad()
    def answers(self, batch: Sequence[Rendered]) -> list[Answer]:
        """Return the `answer` to each question, and its tokens, EOS left out."""
        longest = max(len(question.token_ids) for question in batch)
        ids = torch.full((len(batch), longest), self._eos[0], dtype=torch.long)
        attended = torch.zeros_like(ids)
        for row, question in enumerate(batch):
            ids[row, longest - len(question.token_ids) :] = torch.from_numpy(question.token_ids)
            attended[row, longest - len(question.token_ids) :] = 1
        device = self._model.device
        with replaced(self._model, generation_config=self._settings):
            output = self._model.generate(  # type: ignore[operator]
                input_ids=ids.to(device), attention_mask=attended.to(device)
            )
        tokens = output[:, longest:].cpu().numpy().astype(np.int32)
        return [self._answer(row) for row in tokens]

    def _answer(self, tokens: npt.NDArray[np.int32]) -> Answer:
        ends = np.flatnonzero(np.isin(tokens, self._eos))
        kept = tokens[: ends[0]] if len(ends) else tokens
        return {"answer": str(self._tokenizer.decode(kept.tolist(), skip_special_tokens=True))}, len(kept)
