"""A `Dataset` in any accepted layout -> one that `SFTTrainer` prepares with the same prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adg_plugin.config.schema import IN_MEMORY
from adg_plugin.data.layouts import Layout, find_layout
from adg_plugin.data.templates import ALPACA
from adg_plugin.errors import ConfigError, DataError
from adg_plugin.pipeline.training_rows import parse_chosen, training_rows

if TYPE_CHECKING:
    from datasets import Dataset

# SFTTrainer looks at these before `messages`, so a data set that has both would be read otherwise than it was scored.
_BEFORE_MESSAGES = ("prompt", "completion", "conversations", "text")
_LOOKED_AT_ROWS = 100


@dataclass(frozen=True, slots=True)
class PoolForm:
    """What SFTTrainer gets for rows of one pool: the same columns, and so the same loss, for any part of it."""

    layouts: frozenset[Layout | None]
    template: str

    @classmethod
    def of(cls, pool: Dataset, template: str) -> PoolForm:
        """Return the form of a pool."""
        return cls(frozenset(find_layout(row, IN_MEMORY) for row in pool), template)

    def rows(self, dataset: Dataset, tokenizer: Any) -> Dataset:
        """Return rows as `messages` or as `prompt` and `completion`; rows that are so already stay as they are.

        Args:
            tokenizer: of the model, or None where it is not known yet and has a chat template.

        Raises:
            ConfigError: conversations, and a tokenizer without a chat template.
            DataError: text prompts and turns are mixed, or a row has no answer.
        """
        from datasets import Dataset

        has_chat = tokenizer is None or bool(getattr(tokenizer, "chat_template", None))
        conversations = self.layouts <= {"messages", "sharegpt"}
        if conversations and not has_chat:
            problem = "the tokenizer has no chat template, and the rows are conversations: set chat_template_path"
            raise ConfigError([f"{problem} for the trainer"])
        if self.template not in ALPACA:
            if self.layouts == {"messages"} and all(isinstance(row, list) for row in dataset["messages"]):
                return dataset.remove_columns([name for name in _BEFORE_MESSAGES if name in dataset.column_names])
            if self.layouts == {"prompt_completion"}:
                return dataset
        parsed = [parse_chosen(row, f"train_dataset:{number}", IN_MEMORY) for number, row in enumerate(dataset, 1)]
        kind = "chat" if self.template == "auto" and tokenizer is None else self.template
        return Dataset.from_list(training_rows(parsed, tokenizer, kind, whole=conversations))

    def sample(self, pool: Dataset, tokenizer: Any) -> Dataset:
        """Return a usable row, to show SFTTrainer the kind of data; a DataError if the first hundred have none."""
        for number in range(min(_LOOKED_AT_ROWS, len(pool))):
            try:
                return self.rows(pool.select([number]), tokenizer)
            except DataError as err:
                problem = err
        raise problem


def as_trl(dataset: Dataset, tokenizer: Any, template: str) -> Dataset:
    """Return all rows of a data set as SFTTrainer takes them; see `PoolForm.rows`."""
    return PoolForm.of(dataset, template).rows(dataset, tokenizer)
