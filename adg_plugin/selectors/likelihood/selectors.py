"""IFD and SuperFiltering: how much its prompt helps a model to predict each reference response -> the choice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.cells import Reason
from adg_plugin.engines.models.side_models import other_model, other_model_settings
from adg_plugin.selectors.candidates import NO_ANSWER, Floats, Why
from adg_plugin.selectors.likelihood.judge import LikelihoodJudge
from adg_plugin.selectors.measure import ByMeasure, Measure, fill_measure
from adg_plugin.store import RunFolder
from adg_plugin.store.ledger import measure_schema

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Source

logger = logging.getLogger(__name__)

ABOVE_1 = "ifd_above_1"
NOT_BELOW_1 = "superfiltering_not_below_1"
SUPERFILTERING_TOKENS = 1024  # of prompt and answer together, at most

_SCHEMA = measure_schema(("with_prompt", pa.float64()), ("alone", pa.float64()))  # means of -log p, in nats


def ifd(with_prompt: Floats, alone: Floats) -> Floats:
    """Return each row's IFD, the higher the better up to 1: NaN where not measured or 0 / 0.

    IFD = with_prompt / alone. Above 1 the prompt is a hindrance: it and the answer do not belong together.

    Args:
        with_prompt: (N,) mean of -log p over the answer's tokens after the prompt, in nats; NaN where not measured.
        alone: (N,) the same over the same tokens without the prompt.

    Source: arXiv 2308.12032.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(with_prompt, np.float64) / np.asarray(alone, np.float64)


def superfiltering(with_prompt: Floats, alone: Floats) -> Floats:
    """Return each row's ratio of perplexities, the higher the better below 1: NaN where not measured.

    The ratio is exp(with_prompt) / exp(alone): it depends on the difference of the two means, IFD on their quotient.

    Args:
        with_prompt: (N,) mean of -log p over the answer's tokens after the prompt, in nats; NaN where not measured.
        alone: (N,) the same over the same tokens without the prompt.

    Source: arXiv 2402.00530.
    """
    with np.errstate(over="ignore"):  # infinity is not below 1, either
        return np.exp(np.asarray(with_prompt, np.float64) - np.asarray(alone, np.float64))


class _ByLikelihood(ByMeasure):
    """The highest scores that are made of an answer's likelihood after its prompt and alone."""

    formula: ClassVar[Callable[[Floats, Floats], Floats]]  # means after the prompt and alone -> scores
    shorter: ClassVar[str]  # what helps where a prompt is too long
    parts: ClassVar[Mapping[str, str]] = {
        "answer_nll": "with_prompt",
        "answer_nll_alone": "alone",
        "reference_tokens": "tokens",
    }
    part_meanings: ClassVar[Mapping[str, str]] = {
        "answer_nll": "mean NLL of the answer after the prompt",
        "answer_nll_alone": "mean NLL of the answer alone",
        "reference_tokens": "tokens of the reference response",
    }

    def judge(self, config: ADGConfig, source: Source) -> LikelihoodJudge:
        """Return what is asked of the backbone."""
        return LikelihoodJudge.configured(config, source)

    def score(self, found: pa.Table) -> Floats:
        """Return the scores of measured rows."""
        return type(self).formula(found["with_prompt"].to_numpy(), found["alone"].to_numpy())

    def fill(self, run: RunFolder, config: ADGConfig, source: Source, *, show: bool) -> dict[str, Any]:
        """Measure what is not stored; `cut` is how many answers among all lose their end."""
        judge = self.judge(config, source)
        stats = fill_measure(run, self.measure, judge, show=show)
        if judge.cut:
            logger.warning(
                "%s: of %d of %d answers the end is left out, so that prompt and answer have at most %d tokens",
                self.name,
                judge.cut,
                stats["total"],
                judge.max_tokens,
            )
        return stats | {"cut": judge.cut}

    def unmeasured(self, reason: str, who: str, judge: LikelihoodJudge, row: int) -> str:
        """Return the sentence for a row without likelihoods."""
        from adg_plugin.engines.judges.causal_lm import ANSWER_TOO_SHORT

        if reason == Reason.TOO_LONG:
            return (
                f"the prompt has {judge.prompt_tokens[row]} tokens of {who}, which takes {judge.max_tokens}, the "
                f"answer included: {self.shorter}"
            )
        if reason == ANSWER_TOO_SHORT:
            return (
                "the answer is a single token, and nothing stands before it where it is alone: there is nothing to "
                "compare; give it a longer answer"
            )
        return NO_ANSWER if reason == Reason.NO_ANSWER else super().unmeasured(reason, who, judge, row)


class IFD(_ByLikelihood):
    """The highest IFD up to 1, by the model that will be trained. Source: arXiv 2308.12032."""

    asks_backbone = True
    asked = "model"
    formula: ClassVar[Callable[[Floats, Floats], Floats]] = staticmethod(ifd)
    shorter = "lower max_prompt_tokens and set truncate: true"
    score_meaning = "mean NLL of the answer after the prompt over that of the answer alone"
    measure: ClassVar[Measure] = Measure(
        "ifd",
        _SCHEMA,
        memory="free the device or lower max_prompt_tokens",
        numbers="set dtype to bfloat16 or float32 (float16 overflows in many models), or check the model's weights",
    )

    def refused(self, score: float) -> Why | None:
        """Return why a row whose IFD is above 1 may not be chosen."""
        if np.isnan(score):
            return ABOVE_1, "IFD cannot be computed: the answer is certain with the prompt and without it"
        if score > 1:
            return ABOVE_1, f"IFD is {score:.4f}, above 1: the prompt makes the answer harder to predict"
        return None


class SuperFiltering(_ByLikelihood):
    """The highest ratio of perplexities below 1, by a small model. Source: arXiv 2402.00530."""

    settings = ("small_model",)
    asked = "small_model"
    formula: ClassVar[Callable[[Floats, Floats], Floats]] = staticmethod(superfiltering)
    shorter = "shorten its instruction"
    score_meaning = "perplexity of the answer after the prompt over that of the answer alone"
    measure: ClassVar[Measure] = Measure(
        "superfiltering",
        _SCHEMA,
        memory="free the device, use device: cpu, or a smaller small_model",
        numbers="check the weights of small_model, or name another one",
    )

    def models(self, config: ADGConfig) -> Mapping[str, Callable[[], object]]:
        """Return how the small model is configured."""
        return {"small_model": partial(other_model, config, "small_model")}

    def judge(self, config: ADGConfig, source: Source) -> LikelihoodJudge:
        """Return what is asked of the small model; of the backbone's settings, it takes the device."""
        own, small = other_model_settings(config, "small_model"), other_model(config, "small_model")
        return LikelihoodJudge.configured(own, small, plain=True, limit=SUPERFILTERING_TOKENS)

    def refused(self, score: float) -> Why | None:
        """Return why a row whose ratio is not below 1 may not be chosen."""
        if score < 1:
            return None
        sentence = (
            f"the ratio of perplexities is {score:.4f}, not below 1: the prompt does not help to predict the answer"
        )
        return NOT_BELOW_1, sentence
