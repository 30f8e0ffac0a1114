"""How the scores of a selection came out, for its manifest."""

from __future__ import annotations

from typing import Any

import numpy as np

from adg_plugin.scoring.percentiles import percentiles
from adg_plugin.scoring.score import Scored


def score_summary(scored: Scored, form: str) -> dict[str, Any]:
    """Return how the parts and the score are distributed, and how much each part counts."""
    about = scored.balance
    known = not np.isnan(scored.agreement).all()
    return {
        "form": form,
        "dispersion": percentiles(scored.dispersion),
        "anisotropy": percentiles(scored.anisotropy),
        "score": percentiles(scored.scores),
        "pearson": {"dispersion": about.pearson_dispersion, "anisotropy": about.pearson_anisotropy},
        "spearman": {"dispersion": about.spearman_dispersion, "anisotropy": about.spearman_anisotropy},
        "share_of_variance": {"dispersion": about.share_dispersion, "anisotropy": about.share_anisotropy},
        **({"agreement": percentiles(scored.agreement)} if known else {}),
    }
