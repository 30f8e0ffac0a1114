"""`adg score`: rows with answers that somebody else generated -> dispersion, anisotropy and score of each."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adg_plugin.config.schema import ADGConfig, DatasetSpec
from adg_plugin.console import ticking
from adg_plugin.data.answer_file import texts_of
from adg_plugin.data.cells import UnusableRowError, is_missing
from adg_plugin.data.prompts import PromptLimit, PromptRenderer
from adg_plugin.data.rows import Rejection, Row, parse_row
from adg_plugin.data.sources import Record, iter_records
from adg_plugin.errors import DataError
from adg_plugin.pipeline.given import AnswerRules
from adg_plugin.scoring.geometry import combine, parts
from adg_plugin.store.files import replacing, writing
from adg_plugin.store.records import Prompt

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Backbone

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows scored and rejected."""

    scored: int
    rejected: int
    rejected_path: Path | None


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is known of the file's rows: ids as the file has them, number or text, by place; and the rejected rows."""

    ids: list[Any] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def reject(self, place: int, rejection: Rejection) -> None:
        """Take note of a row that cannot be scored."""
        about = {"reason": rejection.reason.value, "detail": rejection.detail, "where": rejection.where}
        self.rejected.append({"id": self.ids[place], **about})


def score_answers(config: ADGConfig, answers: Path, out: Path) -> Counts:
    """Write `id, dispersion, anisotropy, score` per line of `out` for the rows of a file, and return the counts.

    Rows need `instruction` (and `input`) or `messages`, and `generated_answers`, a list of three texts or more; what
    counts of them says `adg_plugin.pipeline.given.AnswerRules`. A row that cannot be scored goes to
    `OUT.rejected.jsonl` with its reason.

    Raises:
        DataError: the file is missing, of no known format, or holds no rows; a row has no list of answers; no row can
            be scored; `out` is a folder.
        ModelError: the model cannot be used, or has fewer hidden states than `layers`.
        StoreError: `out` cannot be written.
    """
    from adg_plugin.engines.models.loading import load_backbone

    records = iter_records([DatasetSpec(path=str(answers))])
    first = next(records)
    texts_of(first)  # before a model is loaded
    if out.is_dir():
        raise DataError(f"{out} is a folder: give the path of a file as --out")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    rows, path = _Rows(), out.with_name(out.name + ".rejected.jsonl")
    with replacing(out) as sink:  # opened before the work, so that it is not done for nothing
        lines = _scored(chain([first], records), config, load_backbone(config), rows)
        sink.write(_jsonl(lines))
        path.unlink(missing_ok=True)
        if rows.rejected:
            with replacing(path) as rejected:
                rejected.write(_jsonl(rows.rejected))
        if not lines:
            raise DataError(f"none of the {len(rows.ids)} rows of {answers} can be scored: see {path}")
    return Counts(len(lines), len(rows.rejected), path if rows.rejected else None)


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="backslashreplace")


def _scored(records: Iterable[Record], config: ADGConfig, backbone: Backbone, rows: _Rows) -> list[dict[str, Any]]:
    from adg_plugin.engines.base import GivenAnswers
    from adg_plugin.engines.factory import make_encoder
    from adg_plugin.engines.models.loading import embedding_rows, max_positions
    from adg_plugin.engines.split import SplitEngine

    positions = max_positions(backbone.model.config)
    vocabulary = embedding_rows(backbone.model)
    rules = AnswerRules(config, backbone.tokenizer, positions, vocabulary)
    limit = PromptLimit.of(config, vocabulary=vocabulary)
    renderer = PromptRenderer(backbone.tokenizer, config.template, limit, config.truncate)
    engine = SplitEngine(GivenAnswers(), make_encoder(backbone, config, longest=positions))
    measured: dict[int, tuple[float, float]] = {}  # dispersion and anisotropy, by place
    for result in ticking(engine.run(_prompts(records, renderer, rules, rows)), "scoring"):
        if result.gram is None:
            detail = "a vector has no direction" if result.reason == "non_finite_states" else ""
            rows.rejected.append({"id": rows.ids[int(result.id)], "reason": result.reason, "detail": detail})
            continue
        found = parts(result.gram[None])
        measured[int(result.id)] = float(found.dispersion[0]), float(found.anisotropy[0])
    for note in rules.notes():
        logger.warning("%s", note)
    places = sorted(measured)
    spread, directions = np.array([measured[place] for place in places]).reshape(-1, 2).T
    scores = combine(spread, directions, config.score, config.weight)
    return [
        {"id": rows.ids[place], "dispersion": d, "anisotropy": a, "score": score}
        for place, d, a, score in zip(places, spread.tolist(), directions.tolist(), scores.tolist(), strict=True)
    ]


def _prompts(records: Iterable[Record], renderer: PromptRenderer, rules: AnswerRules, rows: _Rows) -> Iterator[Prompt]:
    """Yield the rows that can be scored with their answers; the id of each is its place among `rows.ids`."""
    for (place, row, texts), prompt in renderer.render_many(_usable(records, rows), itemgetter(1)):
        if isinstance(prompt, Rejection):
            rows.reject(place, prompt)
            continue
        try:
            given = rules.answers(texts, row, prompt)
        except UnusableRowError as err:
            rows.reject(place, Rejection.of(row, err.reason, err.detail))
            continue
        yield Prompt(str(place), prompt.token_ids, prompt.span, instruction=row.question, given=given)


def _usable(records: Iterable[Record], rows: _Rows) -> Iterator[tuple[int, Row, list[str]]]:
    for place, record in enumerate(records):
        texts = texts_of(record)
        row = parse_row(record)
        own = record.data.get(record.spec.field_id)
        rows.ids.append(row.id if is_missing(own) else own)
        if isinstance(row, Rejection):
            rows.reject(place, row)
        else:
            yield place, row, texts
