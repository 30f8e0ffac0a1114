"""An SFTTrainer that trains on the rows that ADG chooses with the trainer's own model, and a callback that does so."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, TrainerCallback

from adg_plugin.adapters.trl.checks import OTHER_TRL, check_pool, check_processing_class, check_settings, trl
from adg_plugin.adapters.trl.choice import Choice, PoolForm, evaluation_rows, prepare_sample
from adg_plugin.config.schema import IN_MEMORY, ADGConfig
from adg_plugin.data.layouts import find_layout
from adg_plugin.errors import ADGError, ConfigError

_TRL = trl()
_ARGUMENTS = inspect.signature(_TRL.SFTTrainer.__init__)
_HOW = "write ADGSelectionCallback(trainer, train_dataset=..., config=...) after the trainer is made"


class ADGSFTTrainer(_TRL.SFTTrainer):  # type: ignore[misc,name-defined]  # the module is checked before it is used
    """`SFTTrainer` that selects from `train_dataset` when training begins, and prepares the chosen rows only.

    Takes all arguments of `SFTTrainer`. The pool may be in any row layout that `adg select` reads. Steps and schedule
    are those of the chosen rows; checkpoints hold the chosen ids, and resuming selects nothing again.

    Args:
        selection_config: settings of the selection; what concerns the model is the trainer's. The run folder is its
            `output_dir`, by default `_adg/selection` in that of the trainer.

    Raises:
        ADGError: data or settings that cannot be selected from, before the model loads.
    """

    def __init__(self, *arguments: Any, selection_config: ADGConfig | None = None, **keywords: Any) -> None:
        if not isinstance(selection_config, ADGConfig):
            raise ConfigError(
                [f"selection_config is {selection_config!r}: pass an ADGConfig; to train on every row, use SFTTrainer"]
            )
        bound = _ARGUMENTS.bind(self, *arguments, **keywords)
        given = bound.arguments
        args, tokenizer, pool = (given.get(name) for name in ("args", "processing_class", "train_dataset"))
        check_settings(selection_config, args, given.get("formatting_func"))
        check_pool(pool)
        if tokenizer is not None:
            check_processing_class(tokenizer)
        # The trainer's own comes later; this one only says whether there is a chat template.
        shown = None if getattr(args, "chat_template_path", None) else tokenizer or _tokenizer_of(given["model"])
        form = PoolForm(pool, selection_config.template)
        self._held = given["train_dataset"] = form.sample(pool, shown)
        if given.get("eval_dataset") is not None:
            given["eval_dataset"] = evaluation_rows(given["eval_dataset"], shown, selection_config.template)
        self._is_held = False
        super().__init__(*bound.args[1:], **bound.kwargs)
        if not self._is_held:
            raise ADGError(
                f"SFTTrainer of TRL {_TRL.__version__} did not prepare its training rows by _prepare_dataset, so every "
                f"row would be trained on: {OTHER_TRL}"
            )
        check_processing_class(self.processing_class)
        self.train_dataset = pool
        self._choice = Choice(pool, form, selection_config, self.args.output_dir)

    @property
    def selection_counts(self) -> dict[str, int] | None:
        """Rows of the pool, chosen, trained (and packed sequences); None before training."""
        return self._choice.counts

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **keywords: Any) -> Any:
        if dataset is self._held:
            self._is_held = True
            prepare_sample(partial(super()._prepare_dataset, dataset, *arguments, **keywords))
            return dataset
        return super()._prepare_dataset(dataset, *arguments, **keywords)

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **keywords: Any) -> Any:
        """Train on the chosen rows; on resume, on those of the checkpoint."""
        return super().train(self._choice.resume(resume_from_checkpoint), *arguments, **keywords)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the chosen rows; the first call selects."""
        if self._choice.counts is None:
            self.train_dataset = self._choice.prepare(self, super()._prepare_dataset)
        loader: DataLoader[Any] = super().get_train_dataloader()
        return loader


def _tokenizer_of(model: Any) -> Any:
    """Return the tokenizer that SFTTrainer will load for a model, or None where it will say itself what is wrong."""
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError):
        return None


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
        if not isinstance(trainer, _TRL.SFTTrainer):
            raise ConfigError([f"trainer is a {type(trainer).__name__}: pass an SFTTrainer; {_HOW}"])
        if config is None:
            raise ConfigError([f"config is missing: {_HOW}"])
        check_settings(config, trainer.args, getattr(trainer, "_formatting_func", None))
        check_pool(train_dataset)
        check_processing_class(trainer.processing_class)
        assert train_dataset is not None
        if find_layout(train_dataset[0], IN_MEMORY) == "alpaca":
            # The trainer has decided already what kind of loss it takes, by the columns.
            problem = "train_dataset is in the layout alpaca, which SFTTrainer does not read: use ADGSFTTrainer"
            raise ConfigError(
                [f"{problem}, or give both the trainer and the callback messages, or prompt and completion"]
            )
        form, args = PoolForm(train_dataset, config.template), trainer.args
        tokenizer = trainer.processing_class
        sample = form.sample(train_dataset, tokenizer)
        prepare_sample(partial(trainer._prepare_dataset, sample, tokenizer, args, args.packing, None, "train"))
        self._choice = Choice(train_dataset, form, config, args.output_dir)
        self._bind(trainer, self._choice)
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
            return train(choice.resume(resume_from_checkpoint), *args, **kwargs)

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
