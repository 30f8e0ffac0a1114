"""What a manifest says of a selection beside its rows: how the scores came out, and which versions made them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from adg_plugin.decision import percentiles
from adg_plugin.scoring import Scored

_PACKAGES = ("adg-plugin", "torch", "transformers", "datasets", "numpy", "scikit-learn", "bitsandbytes")


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


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
