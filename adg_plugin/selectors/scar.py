"""SCAR: rows with an answer -> how consistent its style is, by the ranker of `scar-tool`, which defines it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.selectors.candidates import Floats
from adg_plugin.selectors.measure import ByMeasure, Measure, text_key
from adg_plugin.store import RunReader, keys
from adg_plugin.store.ledger import measure_schema

if TYPE_CHECKING:
    from adg_plugin.engines.judges.style_ranker import StyleRanker, StyleRow, StyleScores
    from adg_plugin.engines.models.loading import Source

_VERSION = 1  # raise it when the same settings come to give other scores


class SCAR(ByMeasure):
    """The highest scores of the ranker of `scar-tool`, any real number. Source: arXiv 2406.10882."""

    reads = ("instruction", "reference")
    settings = ("scar_model",)
    extra = "scar"
    score_meaning = "of the ranker"
    measure: ClassVar[Measure] = Measure(
        "scar",
        measure_schema(("score", pa.float64())),
        memory="free the device, or use device: cpu",
        numbers="check the weights of scar_model, or give another ranker",
    )
    asked = "scar_model"

    def models(self, config: ADGConfig) -> Mapping[str, Callable[[], object]]:
        """Return how the ranker is configured."""
        return {"scar_model": partial(_ranker, config)}

    def judge(self, config: ADGConfig, source: Source) -> _StyleJudge:
        """Return the ranker; a MissingExtraError without `scar-tool`, a ModelError if it brings code of its own."""
        from adg_plugin.engines.judges.style_ranker import MAX_TOKENS

        ranker = _ranker(config)
        recipe = {"ranker": ranker.identity, "max_tokens": MAX_TOKENS, "version": _VERSION}
        return _StyleJudge(ranker, keys.digest(recipe))

    def score(self, found: pa.Table) -> Floats:
        """Return the ranker's scores."""
        scores: Floats = found["score"].to_numpy()
        return scores


@dataclass(frozen=True, slots=True)
class _StyleJudge:
    ranker: StyleRanker
    recipe: bytes  # of all that a score depends on, apart from the row

    def rows(self, run: RunReader) -> Iterator[StyleRow]:
        from adg_plugin.engines.judges.style_ranker import StyleRow

        for table in run.staged_columns(["id", "instruction", "reference"]):
            for id, asked, answer in zip(*(column.to_pylist() for column in table.columns), strict=True):
                if answer and answer.strip():
                    yield StyleRow(id, asked, answer)

    def key(self, row: StyleRow) -> bytes:
        return text_key(self.recipe, row.instruction, row.answer)

    def inputs(self, rows: Sequence[StyleRow]) -> Iterator[Sequence[StyleRow] | str]:
        return self.ranker.inputs(rows)

    def load(self) -> StyleScores:
        return self.ranker.load()


def _ranker(config: ADGConfig) -> StyleRanker:
    from adg_plugin.engines.judges.style_ranker import StyleRanker

    return StyleRanker(config.scar_model, config.device)
