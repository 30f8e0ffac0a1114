"""Prompts -> a model's likeliest answer to each, token by token, in batches; for what is asked of a model in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.engines.forward.results import OUT_OF_MEMORY
from adg_plugin.engines.generate import generation_config
from adg_plugin.engines.judges.batches import Batches

_WINDOW_ROWS = 256  # sorted by length together
_BATCH_TOKENS = {"cpu": 8192}
_BATCH_TOKENS_ACCELERATOR = 32768


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked of a row."""

    id: str
    key: bytes  # 16-byte hash of all that produces the answer
    token_ids: npt.NDArray[np.int32]  # (L,), L >= 1


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered. With a `reason` there is no answer."""

    id: str
    key: bytes
    answer: str | None
    tokens: int  # generated, EOS left out
    reason: str | None = None


class GreedyAnswers:
    """Answers with the model's own `generate`, without sampling, rows of similar length together.

    An answer depends on no other row, but for rounding: padding changes the order of sums, and of two tokens that are
    equally likely the other may come.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: of the model.
        eos_ids: tokens that end an answer.
        max_new_tokens: token limit of an answer.
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
        most = batch_tokens or _BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS_ACCELERATOR)
        self._batches = Batches(most, model.device)

    def run(self, questions: Iterable[Question]) -> Iterator[list[Reply]]:
        """Yield the replies of a batch as soon as they are there; a question that does not fit alone has a reason."""
        remaining = iter(questions)
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=self._new_tokens, eos_token_id=self._eos, pad_token_id=self._eos[0]
        )
        while window := list(islice(remaining, _WINDOW_ROWS)):
            with generation_config(self._model, settings):
                for batch, replies in self._batches.run(window, self._width, self._answered):
                    # A question without replies is alone in its batch.
                    yield list(replies or [Reply(batch[0].id, batch[0].key, None, 0, OUT_OF_MEMORY)])

    def _width(self, question: Question) -> int:
        return len(question.token_ids) + self._new_tokens

    @torch.no_grad()
    def _answered(self, batch: Sequence[Question]) -> list[Reply]:
        longest = max(len(question.token_ids) for question in batch)
        ids = torch.full((len(batch), longest), self._eos[0], dtype=torch.long)
        attended = torch.zeros_like(ids)
        for row, question in enumerate(batch):
            ids[row, longest - len(question.token_ids) :] = torch.from_numpy(question.token_ids)
            attended[row, longest - len(question.token_ids) :] = 1
        device = self._model.device
        output = self._model.generate(  # type: ignore[operator]
            input_ids=ids.to(device), attention_mask=attended.to(device)
        )
        return [
            self._reply(question, tokens)
            for question, tokens in zip(batch, output[:, longest:].cpu().numpy().astype(np.int32), strict=True)
        ]

    def _reply(self, question: Question, tokens: npt.NDArray[np.int32]) -> Reply:
        ends = np.flatnonzero(np.isin(tokens, self._eos))
        kept = tokens[: ends[0]] if len(ends) else tokens
        text = str(self._tokenizer.decode(kept.tolist(), skip_special_tokens=True))
        return Reply(question.id, question.key, text, len(kept))
