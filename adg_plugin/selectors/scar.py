"""SCAR over a run folder: rows with an answer -> how consistent its style is, by the ranker of `scar-tool`.

The scores are measured once and kept, as likelihoods are; the definition (arXiv 2406.10882) is that package's.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adg_plugin.config.schema import ADGConfig
from adg_plugin.selectors.measure import NOT_MEASURED, Advice, add_measures
from adg_plugin.store import RunFolder, RunReader, keys
from adg_plugin.store.measures import STYLES, Measures, read_measures
from adg_plugin.store.staging import row_digest

if TYPE_CHECKING:
    from adg_plugin.engines.judges.style_ranker import StyleRanker, StyleRow

logger = logging.getLogger(__name__)

_NAME = "scar"
ADVICE = Advice(
    memory="free the device, or use device: cpu", numbers="check the weights of scar_model, or give another ranker"
)

# Raise it when the same settings come to give other scores.
_VERSION = 1


@dataclass(frozen=True, slots=True)
class StyleTable:
    """What is known of the style of N rows with an answer."""

    ids: npt.NDArray[np.object_]  # (N,) str
    scores: npt.NDArray[np.float64]  # (N,) any real number, higher is more consistent; NaN with a reason
    reasons: npt.NDArray[np.object_]  # (N,) str why there is no score, None where there is


def fill_styles(run: RunFolder, config: ADGConfig, *, show: bool = True) -> dict[str, Any]:
    """Score the prompts of a run folder that have an answer and no score, and return what it took.

    Args:
        run: the run folder, with a staged pool.
        config: `scar_model` and `device`. The ranker is loaded only if there is something to score, and its code is
            never trusted: `trust_remote_code` is about the backbone.
        show: report progress on stderr.

    Returns:
        As `adg_plugin.selectors.measure.add_measures`.

    Raises:
        MissingExtraError: `scar-tool` is not installed.
        ModelError: the ranker or its encoder cannot be loaded, is not whole, or brings code of its own.
        NumericalError, OutOfMemoryError, StoreError: as `adg_plugin.selectors.measure.add_measures`.
    """
    ranker = _ranker(config)
    with Measures.open(run, _NAME, STYLES) as measures:
        for sentence in measures.damage:
            logger.warning("%s", sentence)
        total = pending = 0
        for row in _rows(run, ranker):
            total += 1
            pending += not measures.has(row)
        results = ranker.run(row for row in _rows(run, ranker) if not measures.has(row))
        return add_measures(measures, results, ADVICE, total=total, pending=pending, show=show)


def read_styles(run: RunReader, config: ADGConfig) -> StyleTable:
    """Return the stored scores of the current prompts that have an answer; arguments as of `fill_styles`.

    Those of another ranker or of other texts do not count: such a row's reason is `not_measured`.

    Raises:
        MissingExtraError, ModelError, StoreError: as `fill_styles`.
    """
    ids: list[str] = []
    wanted: list[bytes] = []
    for row in _rows(run, _ranker(config)):
        ids.append(row.id)
        wanted.append(row_digest(row.id, row.key))
    table = read_measures(run, _NAME, wanted, STYLES)
    reasons = [
        NOT_MEASURED if id is None else reason
        for id, reason in zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True)
    ]
    return StyleTable(np.array(ids, object), table["score"].to_numpy(), np.array(reasons, object))


def _ranker(config: ADGConfig) -> StyleRanker:
    from adg_plugin.engines.judges.style_ranker import StyleRanker

    return StyleRanker(config.scar_model, config.device)


def _rows(run: RunReader, ranker: StyleRanker) -> Iterator[StyleRow]:
    """Yield the staged prompts that have an answer, in the pool's order."""
    from adg_plugin.engines.judges.style_ranker import MAX_TOKENS, StyleRow

    recipe = keys.digest({"ranker": ranker.identity, "max_tokens": MAX_TOKENS, "version": _VERSION})
    for table in run.staged_columns(["id", "instruction", "reference"]):
        for id, asked, answer in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if answer and answer.strip():
                yield StyleRow(id, _key(recipe, asked, answer), asked, answer)


def _key(recipe: bytes, *texts: str) -> bytes:
    hashed = hashlib.blake2b(recipe, digest_size=16)
    for text in texts:
        data = text.encode()
        hashed.update(len(data).to_bytes(8, "little"))  # where one ends and the next begins
        hashed.update(data)
    return hashed.digest()
