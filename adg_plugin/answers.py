"""`adg score`: rows with answers that somebody else generated -> dispersion, anisotropy and score of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adg_plugin.config import ADGConfig, DatasetSpec
from adg_plugin.errors import DataError
from adg_plugin.geometry import combine, parts
from adg_plugin.layouts import is_missing
from adg_plugin.progress import ticking
from adg_plugin.prompts import PromptLimit, PromptRenderer, Rendered
from adg_plugin.rows import Rejection, Row, parse_row
from adg_plugin.sources import Record, iter_records
from adg_plugin.store.files import replacing, writing

if TYPE_CHECKING:
    from adg_plugin.engines.loading import Backbone

MIN_ANSWERS = 3
_CHUNK_ROWS = 64


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows scored and rejected."""

    scored: int
    rejected: int
    rejected_path: Path | None


@dataclass(frozen=True, slots=True)
class _Answered:
    id: Any  # as the file has it, number or text
    row: Row
    answers: list[str]


def score_answers(config: ADGConfig, answers: Path, out: Path) -> Counts:
    """Write `id, dispersion, anisotropy, score` per line of `out` for the rows of a JSONL file, and return the counts.

    Rows need `instruction` (and `input`) or `messages`, and `generated_answers`, a list of three texts or more. A row
    that cannot be scored goes to `OUT.rejected.jsonl` with its reason.

    Raises:
        DataError: the file is missing, is not JSONL, holds no rows, or a row has no list of answers; `out` is a folder.
        ModelError: the model cannot be used, or has fewer hidden states than `layers`.
        StoreError: `out` cannot be written.
    """
    from adg_plugin.engines.loading import load_backbone

    spec = DatasetSpec(path=str(answers))
    records = iter_records([spec])
    first = next(records)
    _answers_of(first)  # before a model is loaded
    if out.is_dir():
        raise DataError(f"{out} is a folder: give the path of a file as --out")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    rejected: list[dict[str, Any]] = []
    with replacing(out) as sink:  # opened before the work, so that it is not done for nothing
        scored = _scored(chain([first], records), config, load_backbone(config), rejected)
        for line in scored:
            sink.write(_line(line))
    path = out.with_name(out.name + ".rejected.jsonl")
    path.unlink(missing_ok=True)
    if rejected:
        with replacing(path) as sink:
            for line in rejected:
                sink.write(_line(line))
    return Counts(len(scored), len(rejected), path if rejected else None)


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _scored(
    records: Iterable[Record], config: ADGConfig, backbone: Backbone, rejected: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    from adg_plugin.engines.making import check_model

    check_model(backbone.model, config)
    renderer = PromptRenderer(backbone.tokenizer, config.template, PromptLimit.of(config), config.truncate)
    ids: list[Any] = []
    dispersion, anisotropy = [np.empty(0)], [np.empty(0)]
    for chunk in _chunks(ticking(_rows(records, rejected), "scoring")):
        for answered, gram in _grams(chunk, renderer, backbone, config, rejected):
            found = parts(gram[None])
            ids.append(answered.id)
            dispersion.append(found.dispersion)
            anisotropy.append(found.anisotropy)
    spread, directions = np.concatenate(dispersion), np.concatenate(anisotropy)
    scores = combine(spread, directions, config.score, config.weight)
    return [
        {"id": i, "dispersion": float(d), "anisotropy": float(a), "score": float(s)}
        for i, d, a, s in zip(ids, spread, directions, scores, strict=True)
    ]


def _rows(records: Iterable[Record], rejected: list[dict[str, Any]]) -> Iterator[_Answered]:
    for record in records:
        answers = _answers_of(record)
        row = parse_row(record)
        own = record.data.get(record.spec.field_id)
        id_ = row.id if is_missing(own) else own
        if isinstance(row, Rejection):
            rejected.append(_rejected(id_, row))
        else:
            yield _Answered(id_, row, answers)


def _answers_of(record: Record) -> list[str]:
    answers = record.data.get("generated_answers")
    if not isinstance(answers, list | tuple) or not all(isinstance(a, str) for a in answers):
        seen = "missing" if answers is None else repr(answers)[:60]
        raise DataError(
            f"{record.where}: generated_answers is {seen}: give a list of {MIN_ANSWERS} texts or more per row"
        )
    return list(answers)


def _chunks(rows: Iterator[_Answered]) -> Iterator[list[_Answered]]:
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        yield chunk


def _grams(
    chunk: list[_Answered],
    renderer: PromptRenderer,
    backbone: Backbone,
    config: ADGConfig,
    rejected: list[dict[str, Any]],
) -> Iterator[tuple[_Answered, npt.NDArray[np.float32]]]:
    from adg_plugin.engines.embed import REFERENCE_LAYERS, answer_sequence, embed, reference_sequence
    from adg_plugin.engines.loading import max_positions
    from adg_plugin.engines.states import last_layers

    positions = max_positions(backbone.model.config)
    tokenizer = backbone.tokenizer
    sequences, owners = [], []
    for answered, prompt in zip(chunk, renderer.render_many(a.row for a in chunk), strict=True):
        if isinstance(prompt, Rejection):
            rejected.append(_rejected(answered.id, prompt))
            continue
        tokens = [tokenizer(a, add_special_tokens=False, verbose=False)["input_ids"] for a in answered.answers]
        kept = [(a, t) for a, t in zip(answered.answers, tokens, strict=True) if t]
        if len(kept) < MIN_ANSWERS:
            detail = f"{len(kept)} of {len(tokens)} answers are not empty, {MIN_ANSWERS} are needed"
            rejected.append({"id": answered.id, "reason": "too_few_answers", "detail": detail})
            continue
        longest = len(prompt.token_ids) + max(len(t) for _, t in kept)
        if config.pooling != "reference" and positions is not None and longest > positions:
            detail = f"prompt and longest answer have {longest} tokens, the model has {positions} positions"
            rejected.append({"id": answered.id, "reason": "too_long", "detail": detail})
            continue
        # Equal answers have one vector; rounding noise between their copies would count as directions.
        distinct = dict(kept)
        owners.append((answered, [list(distinct).index(text) for text, _ in kept], len(distinct)))
        for text, ids in distinct.items():
            if config.pooling == "reference":
                sequences.append(reference_sequence(tokenizer, _instruction(answered.row, prompt), text))
            else:
                sequences.append(answer_sequence(prompt.token_ids, np.array(ids, dtype=np.int32), config.pooling))
    if not sequences:
        return
    indices = REFERENCE_LAYERS if config.pooling == "reference" else last_layers(config.layers)
    vectors = embed(backbone.model, sequences, indices).numpy().astype(np.float64)
    start = 0
    for answered, places, count in owners:
        mine = vectors[start : start + count]
        start += count
        if np.isfinite(mine).all():
            yield answered, (mine @ mine.T).astype(np.float32)[np.ix_(places, places)]
        else:
            rejected.append({"id": answered.id, "reason": "non_finite_states", "detail": "a vector has no direction"})


def _instruction(row: Row, prompt: Rendered) -> str:
    return f"{row.instruction}\n\n{row.input}" if row.input else row.instruction or prompt.text


def _rejected(id_: Any, rejection: Rejection) -> dict[str, Any]:
    return {"id": id_, "reason": rejection.reason.value, "detail": rejection.detail, "where": rejection.where}
