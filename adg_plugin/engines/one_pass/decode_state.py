"""What the one-pass engine holds of the answers that it is drawing, and the results of prompts whose have all ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward.decode_group import DecodeGroup
from adg_plugin.engines.forward.hidden_states import begins_anew, unit
from adg_plugin.engines.forward.results import EMPTY, MIN_ANSWERS, NON_FINITE, gram_matrix, rejection, row_result
from adg_plugin.store.records import Answer, FinishReason, Prompt, RowResult


@dataclass(slots=True)
class DecodeState:
    """The answers of a decode_group. Rows are numbered prompt * K + k; `rows` gives the number of each live place."""

    decode_group: DecodeGroup
    prompts: Sequence[Prompt]
    keys: Tensor  # (P * K,) stream of each row
    config: ADGConfig
    sums: Tensor  # (P * K, H) float32, states of the answer tokens fed so far, weighted as `pooling` says
    surprisals: Tensor  # (P * K,) float32, of the token each live row feeds next; used by that pooling only
    tokens: Tensor  # (P * K, max_new_tokens), filled up with the prompt's first
    asked: Tensor  # (P, L) token ids of the prompts, see `filled_up`
    prompt_vectors: Tensor | None  # (P, H) float32; None: answers are sampled, and nothing else
    references: Sequence[Tensor | None]  # (P,) pooled state (H,) of each reference response, where it is asked for
    broken: npt.NDArray[np.bool_]  # (P,) NaN or infinity before the first token
    rows: Tensor  # (R,)
    current: Tensor  # (R,) token that each live row feeds next
    lengths: npt.NDArray[np.int64]  # (P * K,) tokens sampled by rows that have ended
    reasons: npt.NDArray[np.object_]  # (P * K,) None while live
    reported: npt.NDArray[np.bool_]  # (P,)

    def add(self, states: Tensor) -> None:
        """Add the states (R, H) of the tokens just fed, before their decode_group counts them."""
        if begins_anew(self.config.pooling, self.decode_group.age):
            self.sums[self.rows] = states
            return
        if self.config.pooling == "surprisal":
            states = states * self.surprisals[self.rows, None]
        self.sums.index_add_(0, self.rows, states)

    def seen(self) -> Tensor:
        """Return the tokens (R, L + max_new_tokens) of each live row's prompt and answer, some of them repeated."""
        prompts = self.rows // (len(self.tokens) // len(self.prompts))
        return torch.cat((self.asked[prompts], self.tokens[self.rows]), dim=1)

    def end(self, places: Tensor, reason: FinishReason | None = None) -> None:
        """End the rows at these live places (positions in `rows`), and keep the others."""
        rows = self.rows[places].cpu().numpy()
        self.reasons[rows] = reason
        self.lengths[rows] = self.decode_group.age if reason == "eos" else self.tokens.shape[1]
        stay = torch.ones(len(self.rows), dtype=torch.bool, device=self.rows.device)
        stay[places] = False
        self.rows, self.current = self.rows[stay], self.current[stay]
        self.decode_group.keep(self.decode_group.live[stay])

    def results(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[RowResult]:
        """Yield the results of the prompts whose rows have all ended since the last call."""
        done = np.array([r is not None for r in self.reasons]).reshape(len(self.prompts), -1).all(1) & ~self.reported
        self.reported |= done
        prompts = np.flatnonzero(done)
        if not len(prompts):
            return
        samples = self.config.num_samples
        rows = prompts[:, None] * samples + np.arange(samples)  # (P, K)
        index = torch.from_numpy(rows).to(self.sums.device)
        tokens = self.tokens[index].cpu().numpy()
        units = None if self.prompt_vectors is None else unit(self.sums[index]).cpu()
        grams = None if units is None else gram_matrix(units)
        for i, number in enumerate(prompts.tolist()):
            prompt, lengths = self.prompts[number], self.lengths[rows[i]]
            kept = np.flatnonzero(lengths)
            ids = [tokens[i, k, : lengths[k]] for k in kept]
            texts = tokenizer.batch_decode([one.tolist() for one in ids], skip_special_tokens=True) if ids else []
            answers = tuple(map(Answer, ids, texts, self.reasons[rows[i, kept]]))
            if self.broken[number]:  # the tokens mean nothing, and may have ended the answers at once
                yield rejection(prompt, NON_FINITE, answers)
            elif len(kept) < MIN_ANSWERS:
                yield rejection(prompt, EMPTY, answers)
            elif units is None or grams is None or self.prompt_vectors is None:
                yield RowResult(prompt.id, prompt.key, answers, None, None)
            else:
                yield row_result(
                    prompt,
                    answers,
                    units[i, kept],
                    self.prompt_vectors[number],
                    keep_vectors=self.config.keep_vectors,
                    reference=self.references[number],
                    gram=grams[i][np.ix_(kept, kept)],
                )


def filled_up(ids: Sequence[npt.NDArray[np.int32]]) -> Tensor:
    """Return token sequences as one table (N, L) int64, shorter ones filled up with their first token."""
    longest = max(map(len, ids))
    table = np.stack([np.pad(one, (0, longest - len(one)), constant_values=one[0]) for one in ids])
    return torch.from_numpy(table).long()
