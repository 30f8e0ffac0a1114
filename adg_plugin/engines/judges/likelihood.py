"""How likely a model finds answers that are already there, with their prompt and without it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from adg_plugin.data.layouts import Reason
from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY
from adg_plugin.engines.judges.batches import Batches

ANSWER_TOO_SHORT = "answer_too_short"  # one token, and nothing before it where the answer stands alone

_WINDOW_ROWS = 256  # sorted by length together
_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ACCELERATOR = 8192
_CHUNK = 256  # positions whose logits are in float32 at once


@dataclass(frozen=True, slots=True)
class LikelihoodRow:
    """A prompt and the reference response to it."""

    id: str
    key: bytes  # 16-byte hash of all that produces the result
    prompt_ids: npt.NDArray[np.int32]  # (L,), L >= 1
    answer_ids: npt.NDArray[np.int32]  # (T,), without special tokens; T may be 0
    before_ids: npt.NDArray[np.int32]  # (B,) what stands before the answer alone, such as a template's; B may be 0


@dataclass(frozen=True, slots=True)
class LikelihoodResult:
    """What a model makes of a reference response. With a `reason` there are no means."""

    id: str
    key: bytes
    with_prompt: float | None  # mean of -log p over the answer's tokens after the prompt, in nats
    alone: float | None  # the same over the same tokens, without the prompt
    tokens: int  # that both means are over; 0 with a `reason`
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Sequence:
    """Tokens of which those from `first` on are to be predicted; first >= 1."""

    token_ids: npt.NDArray[np.int32]  # (L,)
    first: int

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def targets(self) -> int:
        """How many tokens are to be predicted."""
        return len(self.token_ids) - self.first


class Likelihoods:
    """Measures rows in batches of plain forward passes.

    Both means of a row are over the same tokens. Where nothing stands before the answer alone, its first token cannot
    be predicted, and is left out with the prompt, too. No EOS is fed or predicted.

    Args:
        model: a causal language model in evaluation mode.
        max_tokens: of prompt and answer together; the answer's end is cut. None: as long as they are.
        batch_tokens: of a batch, padding included; halved when memory runs out. Default: by the kind of device.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_tokens: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self._model, self._max_tokens = model, max_tokens
        kind = model.device.type
        self._batches = Batches(batch_tokens or _BATCH_TOKENS.get(kind, _BATCH_TOKENS_ACCELERATOR), model.device)

    def run(self, rows: Iterable[LikelihoodRow]) -> Iterator[LikelihoodResult]:
        """Yield a result for each row, 256 rows at a time by length, those that cannot be measured with a reason.

        Raises:
            ValueError: a prompt without tokens.
        """
        remaining = iter(rows)
        while window := list(islice(remaining, _WINDOW_ROWS)):
            measurable: list[LikelihoodRow] = []
            sequences: list[_Sequence] = []
            for row in window:
                pair = self._pair(row)
                if isinstance(pair, str):
                    yield _rejection(row, pair)
                else:
                    measurable.append(row)
                    sequences += pair
            yield from self._measured(measurable, sequences)

    def _pair(self, row: LikelihoodRow) -> tuple[_Sequence, _Sequence] | str:
        """Return the answer after its prompt and alone, or why there is nothing to compare."""
        if not len(row.prompt_ids):
            raise ValueError(f"row {row.id!r} has a prompt without tokens: the answer's first could not be predicted")
        answer = row.answer_ids
        if not len(answer):
            return Reason.NO_ANSWER.value
        if self._max_tokens is not None:
            answer = answer[: max(0, self._max_tokens - len(row.prompt_ids))]
        if not len(answer):
            return Reason.TOO_LONG.value  # it leaves no room for a token of the answer
        unpredicted = 0 if len(row.before_ids) else 1
        if len(answer) == unpredicted:
            return ANSWER_TOO_SHORT
        with_prompt, alone = (
            _Sequence(np.concatenate((before, answer)), len(before) + unpredicted)
            for before in (row.prompt_ids, row.before_ids)
        )
        return with_prompt, alone

    def _measured(self, rows: Sequence[LikelihoodRow], sequences: Sequence[_Sequence]) -> Iterator[LikelihoodResult]:
        """Yield each row's result as soon as it is complete; its sequences are those at 2 i and 2 i + 1."""

        def width(place: int) -> int:
            return len(sequences[place])

        def measured(places: Sequence[int]) -> list[float]:
            return _mean_nll(self._model, [sequences[place] for place in places])

        means: dict[int, float | None] = {}
        for places, found in self._batches.run(range(len(sequences)), width, measured):
            known: Sequence[float | None] = [None] if found is None else found  # without means, a sequence is alone
            for place, mean in zip(places, known, strict=True):
                means[place] = mean
                if place ^ 1 in means:
                    pair = place & ~1
                    yield _result(rows[place // 2], means.pop(pair), means.pop(pair + 1), sequences[pair].targets)


@torch.no_grad()
def _mean_nll(model: PreTrainedModel, sequences: Sequence[_Sequence]) -> list[float]:
    """Return the mean of -log p over each sequence's targets, in nats, at temperature 1."""
    longest = max(map(len, sequences))
    ids = torch.zeros((len(sequences), longest), dtype=torch.long)
    attended = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence.token_ids)
        # Its own last token fills it up: one whose states are not finite would reach through a mask (0 * NaN).
        ids[row, len(sequence) :] = int(sequence.token_ids[-1])
        attended[row, : len(sequence)] = 1
    counts = [sequence.targets for sequence in sequences]
    rows = torch.repeat_interleave(torch.arange(len(sequences)), torch.tensor(counts))
    columns = torch.cat([torch.arange(sequence.first, len(sequence)) for sequence in sequences])
    logits = logits_at(model, ids, attended, rows, columns - 1)
    targets = ids[rows, columns].to(logits.device)
    losses = [
        torch.nn.functional.cross_entropy(part.float(), of_part, reduction="none")
        for part, of_part in zip(logits.split(_CHUNK), targets.split(_CHUNK), strict=True)
    ]
    return [float(part.mean()) for part in torch.cat(losses).cpu().double().split(counts)]


def logits_at(model: PreTrainedModel, ids: Tensor, attended: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
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


def _result(row: LikelihoodRow, with_prompt: float | None, alone: float | None, tokens: int) -> LikelihoodResult:
    if with_prompt is None or alone is None:
        return _rejection(row, OUT_OF_MEMORY)
    if not np.isfinite([with_prompt, alone]).all():
        return _rejection(row, NON_FINITE)
    return LikelihoodResult(row.id, row.key, with_prompt, alone, tokens)


def _rejection(row: LikelihoodRow, reason: str) -> LikelihoodResult:
    return LikelihoodResult(row.id, row.key, None, None, 0, reason)
