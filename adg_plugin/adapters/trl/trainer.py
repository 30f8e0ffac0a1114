"""An SFTTrainer that trains on the rows that ADG chooses with the trainer's own model."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from adg_plugin.adapters.trl.checks import check_pool, check_processing_class, check_settings
from adg_plugin.adapters.trl.choice import Choice, checkpoint_of
from adg_plugin.adapters.trl.contract import not_asked, trl
from adg_plugin.adapters.trl.rows import PoolForm, as_trl
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_TRL = trl()
_ARGUMENTS = inspect.signature(_TRL.SFTTrainer.__init__)


class ADGSFTTrainer(_TRL.SFTTrainer):  # type: ignore[misc,name-defined]  # the module is checked before it is used
    """`SFTTrainer` that selects from `train_dataset` when training begins, and prepares the chosen rows only.

    Takes all arguments of `SFTTrainer`. The pool may be in any row layout that `adg select` reads. Steps and schedule
    are those of the chosen rows; checkpoints hold the chosen ids, and resuming selects nothing again.

    Args:
        selection_config: settings of the selection; what concerns the model is the trainer's. The run folder is its
            `output_dir`, by default `selection` in that of the trainer.

    Attributes:
        selection_counts: rows of the pool, chosen, trained (and packed sequences); None before training.

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
        form = PoolForm.of(pool, selection_config.template)
        self._held = given["train_dataset"] = form.sample(pool, shown)
        if given.get("eval_dataset") is not None:
            given["eval_dataset"] = _eval(given["eval_dataset"], shown, selection_config.template)
        self._is_held = False
        super().__init__(*bound.args[1:], **bound.kwargs)
        if not self._is_held:
            raise not_asked(_TRL.__version__)
        check_processing_class(self.processing_class)
        self.train_dataset = pool
        self._choice = Choice(pool, form, selection_config, self.args.output_dir)
        self.add_callback(self._choice.keeper)

    @property
    def selection_counts(self) -> dict[str, int] | None:
        """Rows of the pool, chosen and trained; None before training."""
        return self._choice.counts

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **keywords: Any) -> Any:
        if dataset is self._held:
            self._is_held = True
            return dataset
        return super()._prepare_dataset(dataset, *arguments, **keywords)

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **keywords: Any) -> Any:
        """Train on the chosen rows; on resume, on those of the checkpoint."""
        checkpoint = checkpoint_of(resume_from_checkpoint, self.args.output_dir)
        self._choice.resume(checkpoint)
        return super().train(None if checkpoint is None else str(checkpoint), *arguments, **keywords)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the chosen rows; the first call selects."""
        if self._choice.counts is None:
            self.train_dataset = self._choice.prepare(self, super()._prepare_dataset)
        loader: DataLoader[Any] = super().get_train_dataloader()
        return loader


def _tokenizer_of(model: Any) -> Any:
    """Return the tokenizer that SFTTrainer will load for a model, or None where it will say itself what is wrong."""
    from transformers import AutoTokenizer

    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError):
        return None


def _eval(dataset: Any, tokenizer: Any, template: str) -> Any:
    if isinstance(dataset, dict):
        return {name: _eval(part, tokenizer, template) for name, part in dataset.items()}
    check_pool(dataset, "eval_dataset")
    return as_trl(dataset, tokenizer, template)
