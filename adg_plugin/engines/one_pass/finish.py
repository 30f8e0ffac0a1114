"""Prompts whose answers have all ended -> their results: answers, Gram matrix, vectors, or why there is none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward.hidden_states import unit
from adg_plugin.engines.forward.results import (
    EMPTY,
    MIN_ANSWERS,
    NON_FINITE,
    agreement_of,
    gram_matrix,
    rejection,
    row_result,
)
from adg_plugin.engines.one_pass.decode_state import DecodeState
from adg_plugin.store.records import Answer, RowResult


def finished_results(
    decoding: DecodeState, tokenizer: PreTrainedTokenizerBase, config: ADGConfig, *, vectors: bool
) -> Iterator[RowResult]:
    """Yield results of the prompts finished since the last call; `vectors=False`: without Gram matrix and vectors."""
    prompts = decoding.finished()
    if not prompts:
        return
    rows = np.asarray(prompts)[:, None] * config.num_samples + np.arange(config.num_samples)  # (P, K)
    index = torch.from_numpy(rows).to(decoding.sums.device)
    tokens = decoding.tokens[index].cpu().numpy()
    units = unit(decoding.sums[index]).cpu() if vectors else None
    grams = None if units is None else gram_matrix(units)
    for i, prompt in enumerate(prompts):
        lengths = decoding.lengths[rows[i]]
        kept = np.flatnonzero(lengths)
        answers = _answers(tokenizer, [tokens[i, k, : lengths[k]] for k in kept], decoding.reasons[rows[i, kept]])
        about = decoding.prompts[prompt]
        if decoding.broken[prompt]:  # the tokens mean nothing, and may have ended the answers at once
            yield rejection(about, NON_FINITE, answers)
        elif len(kept) < MIN_ANSWERS:
            yield rejection(about, EMPTY, answers)
        elif grams is None or units is None or decoding.prompt_vectors is None:
            yield RowResult(about.id, about.key, answers, None, None)
        else:
            own = decoding.references[prompt]
            yield row_result(
                about,
                answers,
                grams[i][np.ix_(kept, kept)],
                decoding.prompt_vectors[prompt],
                units[i, kept] if config.keep_vectors else None,
                None if own is None else agreement_of(units[i, kept], own.cpu()),
            )


def _answers(
    tokenizer: PreTrainedTokenizerBase, ids: list[npt.NDArray[np.int32]], reasons: npt.NDArray[np.object_]
) -> tuple[Answer, ...]:
    texts = tokenizer.batch_decode([one.tolist() for one in ids], skip_special_tokens=True) if ids else []
    return tuple(Answer(one, text, reason) for one, text, reason in zip(ids, texts, reasons, strict=True))
