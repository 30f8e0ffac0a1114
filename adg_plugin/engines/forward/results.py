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
    units: Tensor,
    prompt_state: Tensor,
    *,
    keep_vectors: bool,
    reference: Tensor | None = None,
    gram: npt.NDArray[np.float32] | None = None,
) -> RowResult:
    """Return the result of a row, or its rejection where a number is not finite.

    Args:
        units: (K, H) unit vectors of the answers.
        prompt_state: (H,) mean state of the instruction's tokens, of any length.
        reference: (H,) state of the reference response, pooled like the answers', of any length; the result then has
            its cosine with their mean.
        gram: (K, K) inner products of `units`, where they are there already.
    """
    prompt_vector = unit(prompt_state.float()).cpu().numpy()
    gram = gram_matrix(units) if gram is None else gram
    # Equal answers have one vector; rounding noise between their copies would count as directions.
    texts = [a.token_ids.tobytes() for a in answers]
    first = [texts.index(t) for t in texts]
    gram = gram[np.ix_(first, first)]
    agreement = None
    if reference is not None:
        agreement = float(unit(units.float().mean(0)) @ unit(reference.to(units.device).float()))
    if not (np.isfinite(gram).all() and np.isfinite(prompt_vector).all() and np.isfinite(agreement or 0)):
        return rejection(prompt, NON_FINITE, answers)
    kept = units.cpu().numpy().astype(np.float16) if keep_vectors else None
    return RowResult(prompt.id, prompt.key, answers, gram, prompt_vector.astype(np.float16), None, kept, agreement)
