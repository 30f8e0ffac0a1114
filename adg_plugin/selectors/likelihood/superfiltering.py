"""SuperFiltering: IFD as a ratio of perplexities, by a small model in the place of the one that is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models.side_models import other_model
from adg_plugin.selectors.likelihood.selector import ByLikelihood

NOT_BELOW_1 = "superfiltering_not_below_1"

Floats = npt.NDArray[np.float64]


def superfiltering(with_prompt: Floats, alone: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return each row's ratio of perplexities, the higher the better, and whether the row may be chosen: below 1.

    The ratio is exp(with_prompt) / exp(alone): it depends on the difference of the two means, IFD on their quotient.

    Args:
        with_prompt: (N,) mean of -log p over the answer's tokens after the prompt, in nats; NaN where not measured.
        alone: (N,) the same over the same tokens without the prompt.

    Returns:
        (N,) scores, NaN where not measured, and (N,) which of them may be chosen.

    Source: arXiv 2402.00530.
    """
    with np.errstate(over="ignore"):  # infinity is not below 1, either
        scores = np.exp(np.asarray(with_prompt, np.float64) - np.asarray(alone, np.float64))
    return scores, scores < 1  # NaN is not


def detail(score: float) -> str:
    """Return the sentence for a row that may not be chosen."""
    return f"the ratio of perplexities is {score:.4f}, not below 1: the prompt does not help to predict the answer"


class SuperFiltering(ByLikelihood):
    """The highest ratio of perplexities below 1, by a small model. Source: arXiv 2402.00530."""

    likelihood = "superfiltering"
    score = staticmethod(superfiltering)
    detail = staticmethod(detail)
    dropped = NOT_BELOW_1
    shorter = "shorten its instruction"
    settings = ("small_model",)
    score_meaning = "perplexity of the answer after the prompt over that of the answer alone"

    def models(self, config: ADGConfig) -> Mapping[str, Callable[[], object]]:
        """Return how the small model is configured."""
        return {"small_model": partial(other_model, config, "small_model")}

    def who(self, config: ADGConfig) -> str:
        """Return the small model."""
        return f"small_model {config.small_model!r}"
