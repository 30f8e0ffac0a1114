"""A `Dataset` in any accepted layout -> one that `SFTTrainer` prepares with the same prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adg_plugin.config import IN_MEMORY
from adg_plugin.errors import ConfigError, DataError
from adg_plugin.layouts import find_layout
from adg_plugin.training_rows import parse_chosen, training_rows

if TYPE_CHECKING:
    from datasets import Dataset

# SFTTrainer looks at these before `messages`, so a data set that has both would be read otherwise than it was scored.
_BEFORE_MESSAGES = ("prompt", "completion", "conversations", "text")
_LOOKED_AT_ROWS = 100


def as_trl(dataset: Dataset, tokenizer: Any, template: str) -> Dataset:
    """Return the rows as `messages` or as `prompt` and `completion`; rows that are so already stay as they are.

    Args:
        dataset: rows in any accepted layout.
        tokenizer: of the model, or None where it is not known yet and has a chat template.
        template: the setting of that name.

    Raises:
        ConfigError: conversations, and a tokenizer without a chat template.
        DataError: text prompts and turns are mixed.
    """
    has_chat = tokenizer is None or bool(getattr(tokenizer, "chat_template", None))
    layouts = {find_layout(row, IN_MEMORY) for row in dataset}
    if layouts <= {"messages", "sharegpt"} and not has_chat:
        problem = "the tokenizer has no chat template, and the rows are conversations: set chat_template_path"
        raise ConfigError([f"{problem} for the trainer"])
    if template != "alpaca":
        if layouts == {"messages"} and all(isinstance(row, list) for row in dataset["messages"]):
            return dataset.remove_columns([name for name in _BEFORE_MESSAGES if name in dataset.column_names])
        if layouts == {"prompt_completion"}:
            return dataset
    parsed = [parse_chosen(row, f"train_dataset:{number}", IN_MEMORY) for number, row in enumerate(dataset, 1)]
    from datasets import Dataset

    kind = "chat" if template == "auto" and tokenizer is None else template
    return Dataset.from_list(training_rows(parsed, tokenizer, kind))


def sample_of(dataset: Dataset, tokenizer: Any, template: str) -> Dataset:
    """Return one usable row in the form of `as_trl`, by which SFTTrainer tells what kind of data it gets.

    Raises:
        DataError: none of the first hundred rows is usable.
    """
    for number in range(min(_LOOKED_AT_ROWS, len(dataset))):
        try:
            return as_trl(dataset.select([number]), tokenizer, template)
        except DataError as err:
            problem = err
    raise problem
