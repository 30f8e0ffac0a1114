"""ZIP as its paper has it, without anything that makes it fast."""

from __future__ import annotations

import zlib


def ratio(texts):
    joined = b"\n".join(texts)
    return len(joined) / len(zlib.compress(joined, 9))


def slow_zip(texts, budget, pool, short_list, per_step):
    """The three stages, in as many lines."""
    score = {row: ratio([text]) for row, text in enumerate(texts)}
    chosen, ratios = [], []
    while score and len(chosen) < budget:
        pooled = sorted(score, key=lambda row: (score[row], row))[:pool]
        score.update({row: ratio([texts[i] for i in [*chosen, row]]) for row in pooled})
        short = sorted(pooled, key=lambda row: (score[row], row))[:short_list]
        step = []
        while short and len(step) < per_step and len(chosen) + len(step) < budget:
            step.append(min(short, key=lambda row: (ratio([texts[i] for i in [*step, row]]), row)))
            short.remove(step[-1])
            del score[step[-1]]
        chosen += step
        ratios += [ratio([texts[i] for i in chosen])] * len(step)
    return chosen, ratios
