"""What the one-pass engine holds of the answers that it is drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adg_plugin.config.scores import Pooling
from adg_plugin.engines.forward.decode_group import DecodeGroup
from adg_plugin.engines.forward.token_weights import begins_anew
from adg_plugin.store.records import FinishReason, Prompt


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What a forward pass over P prompts gives."""

    logits: Tensor  # (P, V) after each prompt
    vectors: list[Tensor]  # (P,) of (H,), of each instruction; empty without vectors
    references: list[Tensor | None]  # (P,) of (H,), of each reference response


@dataclass(slots=True)
class DecodeState:
    """The answers of a decode_group. Rows are numbered prompt * K + k; `rows` gives the number of each live place."""

    decode_group: DecodeGroup
    prompts: Sequence[Prompt]
    keys: Tensor  # (P * K,) stream of each row
    pooling: Pooling
    sums: Tensor  # (P * K, H) float32, states of the answer tokens fed so far, weighted as `pooling` says
    surprisals: Tensor  # (P * K,) float32, of the token each live row feeds next; used by that pooling only
    tokens: Tensor  # (P * K, max_new_tokens), filled up with the prompt's first
    asked: Tensor  # (P, L) token ids of the prompts, see `filled_up`
    prompt_vectors: Tensor | None  # (P, H) float32
    references: Sequence[Tensor | None]  # (P,) pooled state (H,) of each reference response, where it is asked for
    broken: npt.NDArray[np.bool_]  # (P,) NaN or infinity before the first token
    rows: Tensor  # (R,)
    current: Tensor  # (R,) token that each live row feeds next
    lengths: npt.NDArray[np.int64]  # (P * K,) tokens sampled by rows that have ended
    reasons: npt.NDArray[np.object_]  # (P * K,) None while live
    reported: npt.NDArray[np.bool_]  # (P,)

    def add(self, states: Tensor) -> None:
        """Add the states (R, H) of the tokens just fed, before their decode_group counts them."""
        if begins_anew(self.pooling, self.decode_group.age):
            self.sums[self.rows] = states
            return
        if self.pooling == "surprisal":
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

    def finished(self) -> list[int]:
        """Return the prompts whose rows have all ended since the last call."""
        done = np.array([r is not None for r in self.reasons]).reshape(len(self.prompts), -1).all(1) & ~self.reported
        self.reported |= done
        return [int(p) for p in np.flatnonzero(done)]


def filled_up(ids: Sequence[npt.NDArray[np.int32]]) -> Tensor:
    """Return token sequences as one table (N, L) int64, shorter ones filled up with their first token."""
    longest = max(map(len, ids))
    table = np.stack([np.pad(one, (0, longest - len(one)), constant_values=one[0]) for one in ids])
    return torch.from_numpy(table).long()
