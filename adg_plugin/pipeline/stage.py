"""Records -> the staged pool of a run folder: prompts with their keys, and rejected rows with their reasons."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from adg_plugin import __version__
from adg_plugin.config.schema import IN_MEMORY, ADGConfig, DatasetSpec
from adg_plugin.data.answer_file import AnswerFile, answers_fingerprint
from adg_plugin.data.cells import Reason
from adg_plugin.data.filters import ReferenceResponses, RowFilters, row_settings
from adg_plugin.data.prompts import PromptLimit, PromptRenderer, Rendered
from adg_plugin.data.rows import Rejection, Row, row_json, unique_rows
from adg_plugin.data.sources import Record, iter_memory, iter_records, pool_fingerprint
from adg_plugin.errors import ConfigError
from adg_plugin.pipeline.given import AnswerRules, given_answers
from adg_plugin.store import Rejection as StoredRejection
from adg_plugin.store import RunFolder, RunReader, StagedRow, keys
from adg_plugin.store.records import Answer, Prompt

logger = logging.getLogger(__name__)

_NO_ANSWER = "there is no answer to train on; name its column (field_output, field_completion) if there is one"


@dataclass(frozen=True, slots=True)
class Pool:
    """Where rows come from.

    Attributes:
        records: the rows.
        fingerprint: of all of them; None where a change cannot be noticed without reading.
        for_training: reject rows without an answer, on which there is nothing to train.
    """

    records: Iterable[Record]
    fingerprint: str | None
    for_training: bool = False

    @classmethod
    def of(
        cls, config: ADGConfig, dataset: Iterable[Mapping[str, Any]] | None = None, *, for_training: bool = False
    ) -> Pool:
        """Return the pool in memory, or of `datasets`; a DataError for a bad file, a ConfigError if both are given."""
        if config.answers is not None:
            answers_fingerprint(config)  # a missing file is named before a model is looked at
        if dataset is None:
            return cls(iter_records(config.datasets), pool_fingerprint(config.datasets), for_training)
        spec = memory_spec(config)
        fingerprint = getattr(dataset, "_fingerprint", None)
        if fingerprint is not None and spec != IN_MEMORY:
            fingerprint = f"{fingerprint} {spec.model_dump_json()}"
        return cls(iter_memory(dataset, spec), fingerprint, for_training)


def memory_spec(config: ADGConfig) -> DatasetSpec:
    """Return layout and column names of a pool in memory (`path: memory`); a ConfigError if `datasets` names others."""
    if not config.datasets:
        return IN_MEMORY
    if len(config.datasets) > 1 or config.datasets[0].path != IN_MEMORY.path:
        named = ", ".join(spec.path for spec in config.datasets)
        fix = f"leave it out, or name the columns in one entry with path: {IN_MEMORY.path}"
        raise ConfigError([f"datasets is {named}, but the pool is the data set in memory: {fix}"])
    return config.datasets[0]


class PoolCounts(NamedTuple):
    """Rows of a staged pool: `unique` after exact duplicates, of which `candidates` can be chosen; `duplicates`."""

    unique: int
    candidates: int
    duplicates: int


def pool_counts(run: RunReader) -> PoolCounts:
    """Return how many rows the pool that is staged in a run folder has."""
    counts = run.counts()
    duplicates = sum(rejection.reason == Reason.DUPLICATE for rejection in run.staged_rejections())
    return PoolCounts(counts.prompts + counts.rejected - duplicates, counts.prompts, duplicates)


def stage_pool(
    run: RunFolder,
    pool: Pool,
    config: ADGConfig,
    tokenizer: Any,
    recipe: Mapping[str, Any],
    *,
    positions: int | None = None,
    vocabulary: int | None = None,
) -> None:
    """Render the pool into the run folder, unless what is there came of the same pool and settings.

    Args:
        positions: tokens that the model can tell apart by position, or None where it sets no limit.
        vocabulary: how many tokens the model has embeddings for.

    Raises:
        DataError: the pool cannot be read.
        ConfigError, ModelError: the template does not exist or does not fit the tokenizer.
        MissingExtraError: a package that a filter needs is not installed.
        StoreError: the run folder cannot be written.
    """
    digest = staging_digest(pool, config, tokenizer, recipe, positions=positions)
    is_known = pool.fingerprint is not None and (config.answers is None or answers_fingerprint(config) is not None)
    if is_known and run.staged_digest() == digest:
        logger.info("the pool is staged already")
        return
    limit = replace(_limit(config, positions), vocabulary=vocabulary)
    renderer = PromptRenderer(tokenizer, config.template, limit, config.truncate)
    filters, own = RowFilters(config.filters), ReferenceResponses.of(config, tokenizer)
    rows = unique_rows(pool.records)
    prompts = renderer.render_many(map(_with_an_answer, rows) if pool.for_training else rows)
    staged = partial(_staged, prompts, filters, own, keys.digest(recipe))
    if config.answers is None:
        run.stage_prompts(staged(), digest=digest)
        return
    with closing(AnswerFile(config)) as file:
        rules = AnswerRules(config, tokenizer, positions, vocabulary)
        notes: list[str] = []

        def noted() -> Iterator[StagedRow | StoredRejection]:
            yield from staged(partial(given_answers, file, rules))
            notes.extend([*file.notes(), *rules.notes()])

        run.stage_prompts(noted(), digest=digest, notes=notes, given=True)


def _limit(config: ADGConfig, positions: int | None) -> PromptLimit:
    """Return the longest prompt; how long an answer may be is no matter of the settings where it is there already."""
    return PromptLimit.of(config, positions if config.answers is None else None)


def staging_digest(
    pool: Pool, config: ADGConfig, tokenizer: Any, recipe: Mapping[str, Any], *, positions: int | None = None
) -> str:
    """Return what tells this staged pool from all others; arguments as of `stage_pool`."""
    template = Path(config.template).expanduser()
    is_file = bool(template.suffix) and template.is_file()
    settings = {
        "version": __version__,  # staging again costs little, and rendering may have been mended
        "pool": [pool.fingerprint, pool.for_training],
        "recipe": dict(recipe),
        "template": template.read_text(encoding="utf-8") if is_file else config.template,
        "chat_template": tokenizer.chat_template,
        "tokenizer": _tokenizer_digest(tokenizer),
        "max_prompt_tokens": _limit(config, positions).tokens,
        "truncate": config.truncate,
        "filters": dict(row_settings(config.filters)),
        "reference_responses": ReferenceResponses.of(config, tokenizer).tokens,
    }
    if config.answers is not None:
        settings["answers"] = [answers_fingerprint(config), config.num_samples, positions]
    return keys.digest(settings).hex()


def _tokenizer_digest(tokenizer: Any) -> str:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if fast is None else fast.to_str()
    # Templates name the special tokens; whether BOS is added shows in the tokens of a text.
    about = [rules, tokenizer.special_tokens_map, tokenizer("text")["input_ids"]]
    return hashlib.blake2b(json.dumps(about, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _staged(
    prompts: Iterable[tuple[Row | Rejection, Rendered | Rejection]],
    filters: RowFilters,
    own: ReferenceResponses,
    recipe: bytes,
    given: Callable[[Row | Rejection, Rendered | Rejection], tuple[Answer, ...] | Rejection] | None = None,
) -> Iterator[StagedRow | StoredRejection]:
    """Yield every record once, as a prompt or as a rejection, in the pool's order.

    A row that is rejected goes on with its reason, and no later step looks at it. The filters see only rows that could
    be sampled: a row without a prompt cannot stand for its near-duplicates. `given` finds answers of somebody else.
    """
    for row, prompt in prompts:
        answers = None if given is None else given(row, prompt)
        if isinstance(answers, Rejection):
            yield _stored(answers)
        elif isinstance(row, Rejection):
            yield _stored(row)
        elif isinstance(prompt, Rejection):
            yield _stored(prompt)
        elif (filtered := filters.rejection(row)) is not None:
            yield _stored(filtered)
        else:
            reference_ids = own.ids(row.reference)
            key = keys.row_key(recipe, prompt.token_ids, prompt.span, reference_ids, answers)
            asked = Prompt(row.id, prompt.token_ids, prompt.span, key, row.question, reference_ids, answers)
            yield StagedRow(asked, prompt.text, row.reference, row_json(row.data), row.where, row.entry)


def _with_an_answer(row: Row | Rejection) -> Row | Rejection:
    """Return the row, rejected where there is nothing to train on."""
    if isinstance(row, Rejection) or row.answer is not None:
        return row
    return Rejection.of(row, Reason.NO_ANSWER, _NO_ANSWER)


def _stored(rejection: Rejection) -> StoredRejection:
    return StoredRejection(rejection.id, rejection.reason.value, rejection.detail, rejection.where)
