"""A callback that makes a stock SFTTrainer train on the rows that ADG chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from adg_plugin.adapters.trl.checks import check_pool, check_processing_class, check_settings
from adg_plugin.adapters.trl.choice import Choice, checkpoint_of
from adg_plugin.adapters.trl.contract import trl
from adg_plugin.adapters.trl.rows import PoolForm
from adg_plugin.config.schema import IN_MEMORY, ADGConfig
from adg_plugin.data.layouts import find_layout
from adg_plugin.errors import ADGError, ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

_HOW = "write ADGSelectionCallback(trainer, train_dataset=..., config=...) after the trainer is made"


class ADGSelectionCallback(TrainerCallback):
    """Selects when `trainer` builds its data loader, which is before the number of steps is known.

    A callback alone comes too late for that: the loader and the schedule are made before `on_train_begin`. So this one
    is given the trainer and takes the place of its `get_train_dataloader`. It adds itself to the trainer's callbacks.

    Args:
        trainer: an `SFTTrainer`, made with the same rows.
        train_dataset: the pool, as the trainer was given it.
        config: settings of the selection; what concerns the model is the trainer's.

    Raises:
        ADGError: data or settings that cannot be selected from.
    """

    def __init__(
        self, trainer: Any = None, train_dataset: Dataset | None = None, config: ADGConfig | None = None
    ) -> None:
        self.trainer = trainer
        self._choice: Choice | None = None
        if trainer is None:
            return  # as in callbacks=[ADGSelectionCallback()]: training stops before its first step
        if not isinstance(trainer, trl().SFTTrainer):
            raise ConfigError([f"trainer is a {type(trainer).__name__}: pass an SFTTrainer; {_HOW}"])
        if config is None:
            raise ConfigError([f"config is missing: {_HOW}"])
        check_settings(config, trainer.args, getattr(trainer, "_formatting_func", None))
        check_pool(train_dataset)
        check_processing_class(trainer.processing_class)
        assert train_dataset is not None
        _check_kind(trainer, train_dataset)
        form = PoolForm.of(train_dataset, config.template)
        self._choice = Choice(train_dataset, form, config, trainer.args.output_dir)
        self._bind(trainer, self._choice)
        trainer.add_callback(self._choice.keeper)
        trainer.add_callback(self)

    @property
    def selection_counts(self) -> dict[str, int] | None:
        """Rows of the pool, chosen and trained; None before training."""
        return None if self._choice is None else self._choice.counts

    def _bind(self, trainer: Any, choice: Choice) -> None:
        build, train, prepare = trainer.get_train_dataloader, trainer.train, trainer._prepare_dataset

        def selected_dataloader() -> Any:
            if choice.counts is None:
                trainer.train_dataset = choice.prepare(trainer, prepare)
            return build()

        def resumable_train(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
            checkpoint = checkpoint_of(resume_from_checkpoint, trainer.args.output_dir)
            choice.resume(checkpoint)
            return train(None if checkpoint is None else str(checkpoint), *args, **kwargs)

        trainer.get_train_dataloader = selected_dataloader
        trainer.train = resumable_train

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raise an ADGError where this callback has no trainer or another: training would go on with every row."""
        if self.trainer is None:
            raise ADGError(f"ADGSelectionCallback has no trainer, so every row would be trained on: {_HOW}")
        if self._choice is None or self._choice.counts is None or not self.trainer.is_in_train:
            raise ADGError(
                "ADGSelectionCallback is bound to another trainer than the one that trains, so every row would be "
                f"trained on: {_HOW}"
            )


def _check_kind(trainer: Any, pool: Dataset) -> None:
    """Refuse rows that would change what the trainer decided when it was made: the kind of loss goes by the columns."""
    layout = find_layout(pool[0], IN_MEMORY)
    if layout not in ("messages", "prompt_completion"):
        raise ConfigError(
            [
                f"train_dataset is in the layout {layout}, which SFTTrainer does not read by itself: "
                "use ADGSFTTrainer, or give both the trainer and the callback messages, or prompt and completion"
            ]
        )
