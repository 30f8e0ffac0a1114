"""From vectors to the result of a row; the same checks for every engine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from adg_plugin.engines.forward.hidden_states import unit
from adg_plugin.store.records import Answer, Prompt, RowResult

REDRAWS = 2  # an empty answer is resampled from the next stream, this often
MIN_ANSWERS = 3  # two answers span a single direction

# Why an engine rejects a row, as files and counts hold it.
EMPTY = "too_few_answers"  # the others ended at once, however often they were resampled
NON_FINITE = "non_finite_states"
OUT_OF_MEMORY = "out_of_memory"  # with this row alone
REFUSED = "refused_by_server"
TRANSIENT = (OUT_OF_MEMORY, REFUSED)  # not stored: the next run may have more memory, or another server


def gram_matrix(units: Tensor) -> npt.NDArray[np.float32]:
    """Return the inner products (..., K, K) of unit vectors (..., K, H).

    By numpy in float64: torch's switches for the precision of float32 products (TF32), which a trainer may set, would
    be as large as the differences between answers.
    """
    vectors = units.cpu().numpy().astype(np.float64)
    return (vectors @ np.swapaxes(vectors, -1, -2)).astype(np.float32)


def rejection(prompt: Prompt, reason: str, answers: tuple[Answer, ...] = ()) -> RowResult:
    """Return the result of a row that cannot be scored."""
    return RowResult(prompt.id, prompt.key, answers, None, None, reason)


def row_result(
    prompt: Prompt,
    answers: tuple[Answer, ...],
    gram: npt.NDArray[np.float32],
    prompt_state: Tensor,
    vectors: Tensor | None,
    agreement: float | None = None,
) -> RowResult:
    """Return the result of a row, or its rejection where a number is not finite.

    Args:
        gram: (K, K) inner products of the answers' unit vectors.
        prompt_state: (H,) mean state of the instruction's tokens, of any length.
        vectors: (K, H) unit vectors to keep, if asked for.
        agreement: of the reference response with these, if asked for; see `agreement_of`.
    """
    prompt_vector = unit(prompt_state.float()).cpu().numpy()
    # Equal answers have one vector; rounding noise between their copies would count as directions.
    texts = [a.token_ids.tobytes() for a in answers]
    first = [texts.index(t) for t in texts]
    gram = gram[np.ix_(first, first)]
    if not (np.isfinite(gram).all() and np.isfinite(prompt_vector).all() and np.isfinite(agreement or 0)):
        return rejection(prompt, NON_FINITE, answers)
    kept = None if vectors is None else vectors.cpu().numpy().astype(np.float16)
    return RowResult(prompt.id, prompt.key, answers, gram, prompt_vector.astype(np.float16), None, kept, agreement)


def agreement_of(units: Tensor, reference: Tensor) -> float:
    """Return the cosine of a reference response with the mean of the K sampled answers, in [-1, 1]; NaN if undefined.

    Args:
        units: (K, H) unit vectors of the sampled answers.
        reference: (H,) state of the reference response, pooled likewise, of any length.
    """
    return float(unit(units.float().mean(0)) @ unit(reference.float()))
