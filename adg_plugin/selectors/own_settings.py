"""Which settings each selector looks at."""

from __future__ import annotations

from collections.abc import Mapping

# The settings that a method looks at when everything is there: no other changes its choice, or only its choice.
OWN: Mapping[str, tuple[str, ...]] = {
    "adg": ("score", "weight", "bins", "subset"),
    "random": ("seed",),
    "superfiltering": ("small_model",),
    "mig": ("field_labels", "field_quality", "tagger", "quality_scorer", "label_vectors", "bins"),
    "scar": ("scar_model",),
}


# Those that decide over a choice from one staged pool and its answers, beside the filters on agreement.
CHOICE_SETTINGS = ("budget", *dict.fromkeys(key for keys in OWN.values() for key in keys))
