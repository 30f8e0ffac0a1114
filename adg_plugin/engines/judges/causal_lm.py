"""Causal language models that are asked about rows: how likely an answer is, which grade it gets, what they reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.data.cells import Reason
from adg_plugin.data.prompts import Rendered
from adg_plugin.engines.judges.judge import Answer, Batches, Input
from adg_plugin.engines.models.inference_state import replaced

ANSWER_TOO_SHORT = "answer_too_short"  # one token, and nothing before it where the answer stands alone

# Tokens of a batch, on a CPU and on an accelerator.
_LIKELIHOOD_TOKENS = (2048, 8192)
_GRADE_TOKENS = (2048, 16384)
_GREEDY_TOKENS = (8192, 32768)
_CHUNK = 256  # positions whose logits are in float32 at once


@dataclass(frozen=True, slots=True)
class LikelihoodRow:
    """A prompt and the reference response to it."""

    id: str
    prompt_ids: npt.NDArray[np.int32]  # (L,), L >= 1
    answer_ids: npt.NDArray[np.int32]  # (T,), without special tokens; T may be 0
    before_ids: npt.NDArray[np.int32]  # (B,) what stands before the answer alone, such as a template's; B may be 0


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens of which those from `first` on are to be predicted; first >= 1."""

    token_ids: npt.NDArray[np.int32]  # (L,)
    first: int
    name: str  # of the mean

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def targets(self) -> int:
        """How many tokens are to be predicted."""
        return len(self.token_ids) - self.first


def continuations(row: LikelihoodRow, max_tokens: int | None = None) -> tuple[Continuation, Continuation] | str:
    """Return the answer after its prompt and alone, or why there is nothing to compare.

    Both are to predict the same tokens. Where nothing stands before the answer alone, its first token cannot be
    predicted, and is left out with the prompt, too. No EOS is fed or predicted.

    Args:
        max_tokens: of both together; the answer's end is cut. None: as long as they are.

    Raises:
        ValueError: a prompt without tokens.
    """
    if not len(row.prompt_ids):
        raise ValueError(f"row {row.id!r} has a prompt without tokens: the answer's first could not be predicted")
    answer = row.answer_ids
    if not len(answer):
        return Reason.NO_ANSWER.value
    if max_tokens is not None:
        answer = answer[: max(0, max_tokens - len(row.prompt_ids))]
    if not len(answer):
        return Reason.TOO_LONG.value  # it leaves no room for a token of the answer
    unpredicted = 0 if len(row.before_ids) else 1
    if len(answer) == unpredicted:
        return ANSWER_TOO_SHORT
    with_prompt, alone = (
        Continuation(np.concatenate((before, answer)), len(before) + unpredicted, name)
        for name, before in (("with_prompt", row.prompt_ids), ("alone", row.before_ids))
    )
    return with_prompt, alone


class Likelihoods:
    """Measures continuations in batches of at most `batch_tokens`, padding included, halved when memory runs out."""

    def __init__(self, model: PreTrainedModel, *, batch_tokens: int | None = None) -> None:
        self._model = model
        self.batches: Batches[Continuation] = _batches(len, model, batch_tokens, _LIKELIHOOD_TOKENS)

    @torch.no_grad()
    def answers(self, batch: Sequence[Continuation]) -> list[Answer]:
        """Return the mean of -log p over each one's targets, in nats, at temperature 1, and how many there are."""
        ids, attended = _padded([one.token_ids for one in batch])
        counts = [one.targets for one in batch]
        rows = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(counts))
        columns = torch.cat([torch.arange(one.first, len(one)) for one in batch])
        logits = _logits_at(self._model, ids, attended, rows, columns - 1)
        targets = ids[rows, columns].to(logits.device)
        losses = [
            torch.nn.functional.cross_entropy(part.float(), of_part, reduction="none")
            for part, of_part in zip(logits.split(_CHUNK), targets.split(_CHUNK), strict=True)
        ]
        means = [float(part.mean()) for part in torch.cat(losses).cpu().double().split(counts)]
        return [({one.name: mean}, one.targets) for one, mean in zip(batch, means, strict=True)]


class Grades:
    """Reads the grade off the next token's distribution: the mean over the grades' own tokens, as DEITA's scorers do.

    No text is generated. What the model would rather say than a grade plays no part in the score; how much of its
    expectation is on the grades at all is the share.

    Args:
        grade_ids: the tokens of the grades 1, 2, ...
        batch_tokens: of a batch, padding included; halved when memory runs out. Default: by the kind of device.

    Source: arXiv 2312.15685 (DEITA).
    """

    def __init__(self, model: PreTrainedModel, grade_ids: Sequence[int], *, batch_tokens: int | None = None) -> None:
        self._model, self._grade_ids = model, list(grade_ids)
        self.batches: Batches[Rendered] = _batches(
            lambda question: len(question.token_ids), model, batch_tokens, _GRADE_TOKENS
        )

    @torch.no_grad()
    def answers(self, batch: Sequence[Rendered]) -> list[Answer]:
        """Return `score`, 1 to the number of grades, and `share` of each question, and the tokens that were read."""
        ids, attended = _padded([question.token_ids for question in batch])
        lengths = attended.sum(1)
        logits = _logits_at(self._model, ids, attended, torch.arange(len(batch)), lengths - 1)
        of_all = logits.cpu().double().log_softmax(dim=1)[:, self._grade_ids]
        grades = torch.arange(1, len(self._grade_ids) + 1, dtype=torch.float64)
        scores: list[float] = (of_all.softmax(dim=1) @ grades).tolist()
        shares: list[float] = of_all.exp().sum(dim=1).tolist()
        return [
            ({"score": score, "share": share}, length)
            for score, share, length in zip(scores, shares, lengths.tolist(), strict=True)
        ]


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
        self._settings = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=self._eos, pad_token_id=self._eos[0]
        )
        self.batches: Batches[Rendered] = _batches(
            lambda question: len(question.token_ids) + max_new_tokens, model, batch_tokens, _GREEDY_TOKENS
        )

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


def _batches(
    width: Callable[[Input], int], model: PreTrainedModel, given: int | None, default: tuple[int, int]
) -> Batches[Input]:
    return Batches(given or default[model.device.type != "cpu"], width, model.device)


def _padded(sequences: Sequence[npt.NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Return sequences of B lengths up to L as token ids and attention mask (B, L), filled up at the end."""
    ids = torch.zeros((len(sequences), max(map(len, sequences))), dtype=torch.long)
    attended = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence)
        # Its own last token fills it up: one whose states are not finite would reach through a mask (0 * NaN).
        ids[row, len(sequence) :] = int(sequence[-1])
        attended[row, : len(sequence)] = 1
    return ids, attended


def _logits_at(model: PreTrainedModel, ids: Tensor, attended: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the logits (M, V) at M places of a batch (B, L), computed at no other place.

    The states of the others are taken away before the head: `logits_to_keep` keeps the same columns of every row, and
    what a model does to its logits after the head, such as a soft cap, is its own forward's to do.
    """
    device = model.device
    rows, columns = rows.to(device), columns.to(device)
    taken = []

    def take(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *others = arguments
        taken.append(True)
        return (states[rows.to(states.device), columns.to(states.device)][None], *others)

    head: torch.nn.Module | None = model.get_output_embeddings()
    hook = None if head is None else head.register_forward_pre_hook(take)
    try:
        output = model(input_ids=ids.to(device), attention_mask=attended.to(device), use_cache=False)
    finally:
        if hook is not None:
            hook.remove()
    logits: Tensor = output.logits
    return logits[0] if taken else logits[rows.to(logits.device), columns.to(logits.device)]
