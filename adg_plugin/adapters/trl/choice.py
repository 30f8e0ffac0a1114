"""The rows that one trainer trains on: chosen once, written into every checkpoint, read from there on resume."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from adg_plugin.adapters.torch_team import this_team
from adg_plugin.adapters.trl.rows import PoolForm
from adg_plugin.config.run_folder import run_folder
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import DataError
from adg_plugin.pipeline.in_memory import choose_in_memory, positions, rows_digest
from adg_plugin.pipeline.stage import memory_spec
from adg_plugin.store.files import read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

CHOSEN = "adg_selection.json"  # in each checkpoint, written last, and in the trainer's output folder
_VERSION = 1


@dataclass(frozen=True, slots=True)
class ChosenIds:
    """What a checkpoint remembers of the selection."""

    ids: tuple[str, ...]
    digest: str  # of the rows' content, see `rows_digest`
    run_dir: str

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint or an output folder."""
        content = {"version": _VERSION, "rows": len(self.ids), "digest": self.digest, "run_folder": self.run_dir}
        write_json(folder / CHOSEN, {**content, "ids": list(self.ids)})

    @classmethod
    def read(cls, checkpoint: Path) -> ChosenIds:
        """Return what a checkpoint was trained on.

        A checkpoint whose writing was cut off has no such file; its output folder has had one since before training.

        Raises:
            DataError: neither has one.
        """
        for folder in (checkpoint, checkpoint.parent):
            found = read_json(folder / CHOSEN, fix="resume from an earlier checkpoint")
            if found is not None:
                return cls(tuple(found["ids"]), found["digest"], found["run_folder"])
        raise DataError(
            f"{checkpoint} has no {CHOSEN}: it was not trained on a selection, so its rows are not known; "
            "start without resume_from_checkpoint, or resume from another checkpoint"
        )


class KeepChosenIds(TrainerCallback):
    """Writes the chosen ids into every checkpoint."""

    def __init__(self, chosen: ChosenIds | None = None) -> None:
        self.chosen = chosen

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the ids; this comes last, so a checkpoint that has them is whole."""
        if args.should_save and self.chosen is not None:
            self.chosen.write(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class Choice:
    """Chooses the rows of `pool` for a trainer, once.

    Attributes:
        checkpoint: set before training: the one to resume from, whose rows are taken instead of a new selection.
        keeper: the callback that writes the ids.
        counts: rows of the pool, chosen, and left after the trainer's preparation; None before the choice.
    """

    def __init__(self, pool: Dataset, form: PoolForm, config: ADGConfig, output_dir: str) -> None:
        self.pool, self.form, self.config = pool, form, config
        self.run_dir = Path(run_folder(config.output_dir, training=output_dir))
        self.output_dir = Path(output_dir)
        self.checkpoint: Path | None = None
        self.keeper = KeepChosenIds()
        self.counts: dict[str, int] | None = None

    def resume(self, checkpoint: Path | None) -> None:
        """Set the checkpoint that the next training resumes from; a DataError where other rows are chosen already."""
        self.checkpoint = checkpoint
        chosen = self.keeper.chosen
        if checkpoint is not None and chosen is not None and ChosenIds.read(checkpoint).digest != chosen.digest:
            raise DataError(
                f"{checkpoint} was trained on other rows than this trainer has chosen already: "
                "make a new trainer to resume from it"
            )

    def prepare(self, trainer: Any, prepare: Any) -> Dataset:
        """Return the chosen rows as `prepare`, the `_prepare_dataset` of a trainer with its model, makes them."""
        tokenizer = _tokenizer(trainer)
        args = trainer.args
        rows = self.form.rows(self._choose(trainer.model, tokenizer, training_precision(args)), tokenizer)
        prepared = prepare(rows, trainer.processing_class, args, args.packing, None, "train")
        self.counts = {"pool": len(self.pool), **prepared_counts(len(rows), prepared, args)}
        return prepared

    def _choose(self, model: Any, tokenizer: Any, training: str | None) -> Dataset:
        team = this_team()
        with team.barrier("reading the checkpoint"):
            remembered: Mapping[str, Any] = {}
            if team.rank == 0 and self.checkpoint is not None:
                of_checkpoint = ChosenIds.read(self.checkpoint)
                remembered = {"ids": of_checkpoint.ids, "digest": of_checkpoint.digest}
        remembered = team.broadcast(remembered)
        if remembered:
            logger.info("training on the %d rows of %s", len(remembered["ids"]), self.checkpoint)
            ids = tuple(remembered["ids"])
        else:
            ids = choose_in_memory(
                self.pool, model, tokenizer, self.config, self.run_dir, training=training, own=True, team=team
            ).ids
        with team.barrier("finding the chosen rows"):
            rows = self.pool.select(positions(self.pool, ids, memory_spec(self.config)))
            chosen = ChosenIds(tuple(ids), rows_digest(rows), str(self.run_dir))
            if remembered and chosen.digest != remembered["digest"]:
                raise DataError(
                    f"the rows that {self.checkpoint} was trained on have changed in the data set since: "
                    "give the data set as it was, or start without resume_from_checkpoint"
                )
            if team.rank == 0:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                chosen.write(self.output_dir)
        self.keeper.chosen = chosen
        return rows


def training_precision(args: Any) -> str | None:
    """Return the half precision that a trainer with these arguments uses by autocast, as torch names it, or None."""
    return {"bf16": "bfloat16", "fp16": "float16"}.get(args.mixed_precision)


def prepared_counts(chosen: int, prepared: Any, args: Any) -> dict[str, int]:
    """Return the rows chosen and trained (packed: sequences, too), after logging them; a DataError if none is left."""
    left = len(prepared)
    if not left:
        raise DataError(
            f"none of the {chosen} chosen rows is left after the trainer's preparation: their prompts alone fill "
            f"max_length ({args.max_length}); raise it"
        )
    if args.packing:
        logger.info("%d rows chosen, packed into %d sequences", chosen, left)
        return {"chosen": chosen, "trained": chosen, "sequences": left}
    level = logging.WARNING if left < chosen else logging.INFO
    logger.log(
        level,
        "%d rows chosen, %d trained: %d had no trained token left after truncation to max_length (%s)",
        chosen,
        left,
        chosen - left,
        args.max_length,
    )
    return {"chosen": chosen, "trained": left}


def last_whole_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None.

    Only of the rows that were chosen last: an earlier run in the same folder may have got further.
    """
    found = [path.parent for path in output_dir.glob(f"checkpoint-*/{CHOSEN}")]
    if (output_dir / CHOSEN).is_file():
        digest = ChosenIds.read(output_dir).digest
        found = [checkpoint for checkpoint in found if ChosenIds.read(checkpoint).digest == digest]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def checkpoint_of(asked: Any, output_dir: str) -> Path | None:
    """Return the checkpoint that `resume_from_checkpoint` means: a path, or True for the last; a DataError if none."""
    if asked is None or asked is False:
        return None
    if asked is not True:
        return Path(asked)
    from transformers.trainer_utils import get_last_checkpoint

    last = last_whole_checkpoint(Path(output_dir)) or get_last_checkpoint(output_dir)
    if last is None:
        raise DataError(f"resume_from_checkpoint is true, but {output_dir} has no checkpoint: leave it out")
    return Path(last)


def _tokenizer(trainer: Any) -> Any:
    template = getattr(trainer, "chat_template", None)  # with marks for assistant_only_loss
    if template is None:
        return trainer.processing_class
    tokenizer = copy.copy(trainer.processing_class)
    tokenizer.chat_template = template
    return tokenizer
