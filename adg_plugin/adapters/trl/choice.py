"""The rows that one trainer trains on: chosen once, as SFTTrainer takes them, and remembered in every checkpoint."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.table import InMemoryTable
from pydantic import BaseModel
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from adg_plugin.adapters.torch_team import this_team
from adg_plugin.config.run_folder import run_folder
from adg_plugin.config.schema import IN_MEMORY, ADGConfig
from adg_plugin.data.layouts import find_layout
from adg_plugin.data.sources import iter_memory
from adg_plugin.errors import ConfigError, DataError, first_line
from adg_plugin.pipeline.in_memory import choose_in_memory, positions, rows_digest
from adg_plugin.pipeline.stage import memory_spec
from adg_plugin.pipeline.training_rows import parse_chosen, training_table
from adg_plugin.store.files import read_json, write_json

logger = logging.getLogger(__name__)

CHOSEN = "adg_selection.json"  # in each checkpoint, written last, and in the trainer's output folder
_VERSION = 1
_LOOKED_AT_ROWS = 100
_TRAINED = "%d rows chosen, %d trained: %d had no trained token left after truncation to max_length (%s)"


class PoolForm:
    """What SFTTrainer gets for rows of one pool: the same columns, and so the same loss, for any part of it."""

    def __init__(self, pool: Dataset, template: str) -> None:
        self.layouts, self.template = {find_layout(row, IN_MEMORY) for row in pool}, template

    def rows(self, dataset: Dataset, tokenizer: Any, *, compare: bool = True) -> Dataset:
        """Return rows as `messages` or as `prompt` and `completion`, made of what was parsed; no other column is left.

        Args:
            tokenizer: of the model, or None where it is not known yet and has a chat template.
            compare: warn of rows whose prompt is not the beginning of what is trained.

        Raises:
            ConfigError: conversations, and a tokenizer without a chat template.
            DataError: text prompts and turns are mixed, a row cannot be read, or none has an answer.
        """
        has_chat = tokenizer is None or bool(getattr(tokenizer, "chat_template", None))
        conversations = self.layouts <= {"messages", "sharegpt"}
        if conversations and not has_chat:
            problem = "the tokenizer has no chat template, and the rows are conversations: set chat_template_path"
            raise ConfigError([f"{problem} for the trainer"])
        parsed = [parse_chosen(record.data, f"train_{record.where}", IN_MEMORY) for record in iter_memory(dataset)]
        kind = "chat" if self.template == "auto" and tokenizer is None else self.template
        return Dataset(InMemoryTable(training_table(parsed, tokenizer, kind, whole=conversations, compare=compare)))

    def sample(self, pool: Dataset, tokenizer: Any) -> Dataset:
        """Return a usable row, to show SFTTrainer the kind of data; a DataError if the first hundred have none."""
        for number in range(min(_LOOKED_AT_ROWS, len(pool))):
            try:
                return self.rows(pool.select([number]), tokenizer, compare=False)
            except DataError as err:
                problem = err
        raise problem


def prepare_sample(prepare: Callable[[], Any]) -> None:
    """Let a trainer prepare a row for real, so that what it cannot take is known before anything is sampled.

    Raises:
        DataError: it cannot, with its own words.
    """
    try:
        prepare()
    except Exception as err:
        problem = f"SFTTrainer cannot prepare a row of train_dataset: {type(err).__name__}: {first_line(err)}"
        raise DataError(f"{problem}; nothing was sampled") from err


def evaluation_rows(dataset: Any, tokenizer: Any, template: str) -> Any:
    """Return rows to evaluate on: in a layout that is read here, rendered as those of training; others as they are.

    Text, tokens and streams are the trainer's own business. Arguments and errors are those of `PoolForm.rows`.
    """
    if isinstance(dataset, dict):
        return {name: evaluation_rows(part, tokenizer, template) for name, part in dataset.items()}
    if not isinstance(dataset, Dataset) or not len(dataset) or "input_ids" in dataset.column_names:
        return dataset
    form = PoolForm(dataset, template)
    return dataset if None in form.layouts else form.rows(dataset, tokenizer, compare=False)


class _ChosenFile(BaseModel):
    ids: list[str]
    digest: str


@dataclass(frozen=True, slots=True)
class ChosenIds:
    """What a checkpoint remembers of the selection."""

    ids: tuple[str, ...]
    digest: str  # of the rows' content, see `rows_digest`

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint or an output folder."""
        content = {"version": _VERSION, "rows": len(self.ids), "digest": self.digest}
        write_json(folder / CHOSEN, {**content, "ids": list(self.ids)})

    @classmethod
    def read(cls, checkpoint: Path) -> ChosenIds:
        """Return what a checkpoint was trained on; a DataError where neither it nor its output folder says.

        A checkpoint whose writing was cut off has no such file; its output folder has had one since before training.
        """
        for folder in (checkpoint, checkpoint.parent):
            fix = "resume from another checkpoint, or start without resume_from_checkpoint"
            found = read_json(folder / CHOSEN, fix=fix, shape=_ChosenFile)
            if found is not None:
                return cls(tuple(found["ids"]), found["digest"])
        raise DataError(
            f"{checkpoint} has no {CHOSEN}: it was not trained on a selection, so its rows are not known; "
            "start without resume_from_checkpoint, or resume from another checkpoint"
        )


class KeepChosenIds(TrainerCallback):
    """Writes the chosen ids into every checkpoint."""

    def __init__(self, chosen: ChosenIds) -> None:
        self._chosen = chosen

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the ids; this comes last, so a checkpoint that has them is whole."""
        if args.should_save:
            self._chosen.write(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class Choice:
    """Chooses the rows of `pool` for a trainer, once."""

    def __init__(self, pool: Dataset, form: PoolForm, config: ADGConfig, output_dir: str) -> None:
        self.pool, self.form, self.config = pool, form, config
        self.run_dir = Path(run_folder(config.output_dir, training=output_dir))
        self.output_dir = Path(output_dir)
        self.checkpoint: Path | None = None  # to resume from: its rows are taken instead of a new selection
        self.chosen: ChosenIds | None = None
        self.counts: dict[str, int] | None = None  # of the pool, chosen, and left after the trainer's preparation

    def resume(self, asked: Any) -> str | None:
        """Return the checkpoint that `resume_from_checkpoint` means; a DataError where other rows are chosen already.

        Its rows are those of the next training.
        """
        self.checkpoint = checkpoint = checkpoint_of(asked, self.output_dir)
        if checkpoint is None:
            return None
        if self.chosen is not None and ChosenIds.read(checkpoint).digest != self.chosen.digest:
            raise DataError(
                f"{checkpoint} was trained on other rows than this trainer has chosen already: "
                "make a new trainer to resume from it"
            )
        return str(checkpoint)

    def prepare(self, trainer: Any, prepare: Any) -> Dataset:
        """Return the chosen rows as `prepare`, the `_prepare_dataset` of a trainer with its model, makes them.

        The trainer's checkpoints remember them.
        """
        args, tokenizer = trainer.args, trainer.processing_class
        if (template := getattr(trainer, "chat_template", None)) is not None:  # with marks for assistant_only_loss
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = template
        chosen_rows, self.chosen = self._choose(trainer.model, tokenizer, training_precision(args))
        trainer.add_callback(KeepChosenIds(self.chosen))
        rows = self.form.rows(chosen_rows, tokenizer)
        prepared = prepare(rows, trainer.processing_class, args, args.packing, None, "train")
        self.counts = {"pool": len(self.pool), **prepared_counts(len(rows), prepared, args)}
        return prepared

    def _choose(self, model: Any, tokenizer: Any, training: str | None) -> tuple[Dataset, ChosenIds]:
        team = this_team()
        with team.barrier("reading the checkpoint"):
            found = ChosenIds.read(self.checkpoint) if team.rank == 0 and self.checkpoint is not None else None
        remembered = team.broadcast({} if found is None else {"ids": found.ids, "digest": found.digest})
        if remembered:
            logger.info("training on the %d rows of %s", len(remembered["ids"]), self.checkpoint)
            ids = tuple(remembered["ids"])
        else:
            ids = choose_in_memory(
                self.pool, model, tokenizer, self.config, self.run_dir, training=training, own=True, team=team
            ).ids
        with team.barrier("finding the chosen rows"):
            rows = self.pool.select(positions(self.pool, ids, memory_spec(self.config)))
            chosen = ChosenIds(tuple(ids), rows_digest(rows))
            if remembered and chosen.digest != remembered["digest"]:
                raise DataError(
                    f"the rows that {self.checkpoint} was trained on have changed in the data set since: "
                    "give the data set as it was, or start without resume_from_checkpoint"
                )
            if team.rank == 0:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                chosen.write(self.output_dir)
        return rows, chosen


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
    logger.log(level, _TRAINED, chosen, left, chosen - left, args.max_length)
    return {"chosen": chosen, "trained": left}


def last_whole_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None.

    Only of the rows that were chosen last: an earlier run in the same folder may have got further.
    """
    found = [path.parent for path in output_dir.glob(f"checkpoint-*/{CHOSEN}") if path.parent.name[11:].isdecimal()]
    if (output_dir / CHOSEN).is_file():
        digest = ChosenIds.read(output_dir).digest
        found = [checkpoint for checkpoint in found if ChosenIds.read(checkpoint).digest == digest]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def checkpoint_of(asked: Any, output_dir: Path) -> Path | None:
    """Return the checkpoint that `resume_from_checkpoint` means: a path, or True for the last; a DataError if none."""
    if asked is None or asked is False:
        return None
    if asked is not True:
        return Path(asked)
    last = (last_whole_checkpoint(output_dir) or get_last_checkpoint(output_dir)) if output_dir.is_dir() else None
    if last is None:
        raise DataError(f"resume_from_checkpoint is true, but {output_dir} has no checkpoint: leave it out")
    return Path(last)
