"""IFD, the instruction-following difficulty: how little a prompt helps a model to predict the reference response."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from adg_plugin.config.schema import ADGConfig
from adg_plugin.selectors.likelihood.selector import ByLikelihood

ABOVE_1 = "ifd_above_1"

Floats = npt.NDArray[np.float64]


def ifd(with_prompt: Floats, alone: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return each row's IFD, the higher the better, and whether the row may be chosen: not above 1.

    IFD = with_prompt / alone. Above 1 the prompt is a hindrance: it and the answer do not belong together.

    Args:
        with_prompt: (N,) mean of -log p over the answer's tokens after the prompt, in nats; NaN where not measured.
        alone: (N,) the same over the same tokens without the prompt.

    Returns:
        (N,) scores, NaN where not measured or 0 / 0, and (N,) which of them may be chosen.

    Source: arXiv 2308.12032.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.asarray(with_prompt, np.float64) / np.asarray(alone, np.float64)
    return scores, scores <= 1  # NaN is not


def detail(score: float) -> str:
    """Return the sentence for a row that may not be chosen."""
    if np.isnan(score):
        return "IFD cannot be computed: the answer is certain with the prompt and without it"
    return f"IFD is {score:.4f}, above 1: the prompt makes the answer harder to predict"


class IFD(ByLikelihood):
    """The highest IFD up to 1, by the model that will be trained. Source: arXiv 2308.12032."""

    likelihood = "ifd"
    score = staticmethod(ifd)
    detail = staticmethod(detail)
    dropped = ABOVE_1
    shorter = "lower max_prompt_tokens and set truncate: true"
    asks_backbone = True
    score_meaning = "mean NLL of the answer after the prompt over that of the answer alone"

    def who(self, config: ADGConfig) -> str:
        """Return the backbone."""
        return f"model {config.model!r}"
