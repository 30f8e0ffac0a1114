"""The selection within Axolotl: stage its rows, let a child process choose, keep the chosen ones."""

from __future__ import annotations

import logging
import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adg_plugin.adapters.axolotl import internals as axolotl
from adg_plugin.adapters.axolotl.args import selection_config, selection_folder
from adg_plugin.adapters.axolotl.rows import Training, row_digests, stage
from adg_plugin.adapters.processes import parent_watchdog, run_stage
from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.filters import ReferenceResponses, RowFilters
from adg_plugin.data.prompts import PromptLimit, PromptRenderer
from adg_plugin.engines.models.loading import Source
from adg_plugin.errors import ADGError, ConfigError, DataError
from adg_plugin.pipeline.stage import Pool, staging_digest
from adg_plugin.store import RunFolder, RunReader, keys
from adg_plugin.store.files import replacing

logger = logging.getLogger("axolotl.adg_plugin")  # Axolotl shows its own loggers only

_SELECTION = ("-m", "adg_plugin.adapters.selection_process", "--staged")
_ROWS = "training_rows.parquet"  # in a run folder: each training row's digest and its id


@dataclass(frozen=True, slots=True)
class _Part:
    """What is selected by itself: all rows, or those of one entry of `datasets`."""

    run_dir: Path
    config: ADGConfig
    number: int | None  # of the entry
    fingerprint: str
    staged: str  # what `RunFolder.staged_digest` gives once its rows are staged
    recipe: dict[str, Any]

    def is_staged(self) -> bool:
        return (self.run_dir / _ROWS).is_file() and RunFolder.read(self.run_dir).staged_digest() == self.staged

    def is_complete(self) -> bool:
        if not self.is_staged():
            return False
        manifest = RunReader(self.run_dir).manifest()
        settings = self.config.model_dump(mode="json"), self.recipe
        return manifest is not None and (manifest["config"], manifest["recipe"]) == settings

    def ids(self) -> dict[bytes, str]:
        rows = pq.read_table(self.run_dir / _ROWS)
        return dict(zip(rows["digest"].to_pylist(), rows["id"].to_pylist(), strict=True))

    def chosen(self) -> list[bytes]:
        scores = RunReader(self.run_dir).scores()
        chosen = set(scores.filter(scores["chosen"])["id"].to_pylist())
        return [digest for digest, id in self.ids().items() if id in chosen]


def selected_positions(cfg: Any, train: Any) -> tuple[list[int], list[Path]]:
    """Return the positions of the chosen rows, ascending, and the run folders that say why.

    What the run folder holds is reused. The backbone is loaded, in a process of its own, only for rows without answers.
    Of equal rows the first is chosen, or none.

    Raises:
        ADGError: rows that are not in the data sets, a selection that fails, or several ranks before a selection.
    """
    config = selection_config(cfg)
    run_dir = selection_folder(cfg)
    positions: dict[bytes, int] = {}
    for position, digest in enumerate(row_digests(train, cfg["sequence_len"])):
        positions.setdefault(digest, position)
    tokenizer = axolotl.load_tokenizer(cfg)
    source = Source.configured(config)
    rows = sorted(digest.hex() for digest in positions)
    pool = keys.digest({"rows": rows, "prepared": axolotl.prepared_hash(cfg, tokenizer)}).hex()
    parts = _parts(cfg, config, source, run_dir, pool=pool)
    if not all(part.is_complete() for part in parts):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ADGError(
                f"no selection for this configuration in {run_dir}, and {os.environ['WORLD_SIZE']} processes would "
                "wait for one of them: run `axolotl preprocess` on the same YAML first"
            )
        _stage_all(cfg, parts, source, tokenizer, positions)
        for part in parts:
            if not part.is_complete():
                logger.info("ADG selects in a process of its own; run folder %s", part.run_dir)
                with parent_watchdog(part.run_dir):
                    run_stage("the selection", [*_SELECTION, str(part.run_dir), part.fingerprint])
    keep = sorted(positions[digest] for part in parts for digest in part.chosen())
    return keep, [part.run_dir for part in parts]


def _parts(cfg: Any, config: ADGConfig, source: Source, run_dir: Path, *, pool: str) -> list[_Part]:
    recipe = keys.sampling_fingerprint(config, model=source.identity, eos_ids=source.eos_ids)

    def part(run_dir: Path, config: ADGConfig, fingerprint: str, number: int | None = None) -> _Part:
        staged = staging_digest(Pool((), fingerprint), config, source.tokenizer, recipe, positions=source.positions)
        return _Part(run_dir, config, number, fingerprint, staged, recipe)

    if (budgets := config.budget_per_dataset) is None:
        return [part(run_dir, config, pool)]
    if len(budgets) != (entries := len(cfg["datasets"])):
        problem = f"adg.budget_per_dataset has {len(budgets)} entries, datasets has {entries}: give one budget for each"
        raise ConfigError([problem])
    parts = []
    for number, budget in enumerate(budgets):
        # Not by its number alone: entries that change places would else be taken for each other.
        fingerprint = f"{pool}-{axolotl.entry_digest(cfg, number)}"
        settings = config.updated(budget=budget, budget_per_dataset=None)
        parts.append(part(run_dir.with_name(f"{run_dir.name}-{number}"), settings, fingerprint, number))
    return parts


def _stage_all(cfg: Any, parts: list[_Part], source: Source, tokenizer: Any, wanted: dict[bytes, int]) -> None:
    """Write the prompts of the wanted rows into the run folders; a DataError where one is in no data set."""
    staged: set[bytes] = set()
    for part in parts:
        with RunFolder.open(part.run_dir) as run:
            run.write_config({"config": part.config.model_dump(mode="json"), "recipe": part.recipe})
            if not part.is_staged():
                (part.run_dir / _ROWS).unlink(missing_ok=True)
                _stage(cfg, part, run, source, tokenizer, wanted.keys() - staged)
        staged |= part.ids().keys()
    if missing := len(wanted.keys() - staged):
        raise DataError(
            f"{missing} of {len(wanted)} training rows are not in `datasets` as they are now: what is prepared in "
            f"{axolotl.prepared_folder(cfg)} is older; run `axolotl preprocess` again"
        )


def _stage(cfg: Any, part: _Part, run: RunFolder, source: Source, tokenizer: Any, wanted: Container[bytes]) -> None:
    config, limit = part.config, PromptLimit.of(part.config, source.positions, source.vocabulary)
    other_tokens = None
    if not _reads_the_same(source.tokenizer, tokenizer):
        other_tokens = PromptRenderer(source.tokenizer, config.template, limit, config.truncate)
    training = Training(
        limit=limit,
        recipe=keys.digest(part.recipe),
        reference_responses=ReferenceResponses.of(config, source.tokenizer),
        tokenizer=tokenizer,
        end_tokens=axolotl.end_tokens(cfg, tokenizer),
        sequence_len=cfg["sequence_len"],
        template_kwargs=cfg.get("chat_template_kwargs") or {},
        other_tokens=other_tokens,
    )
    ids: dict[bytes, str] = {}
    entries = axolotl.sources(cfg, tokenizer, only=part.number)
    run.stage_prompts(stage(entries, wanted, training, ids, RowFilters(config.filters)), digest=part.staged)
    table = pa.table({"digest": pa.array(ids.keys(), pa.binary(16)), "id": pa.array(ids.values(), pa.string())})
    with replacing(part.run_dir / _ROWS) as sink:
        pq.write_table(table, sink, compression="zstd")


def _reads_the_same(one: Any, other: Any) -> bool:
    """Return whether two tokenizers agree on all tokens but those that were added later, such as for padding."""

    def learnt(tokenizer: Any) -> dict[str, int]:
        added = tokenizer.get_added_vocab()
        return {token: number for token, number in tokenizer.get_vocab().items() if token not in added}

    return learnt(one) == learnt(other)
