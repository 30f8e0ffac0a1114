"""One run of the downstream benchmark: LoRA SFT on some rows, then the loss of held-out answers, row by row."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from adg_plugin.config.schema import DatasetSpec
from adg_plugin.demo import model_path
from adg_plugin.pipeline.training_rows import parse_chosen, training_table

_TOKENS_AT_ONCE = 1024  # whose logits are held: 200 MB in float32
_ROWS_AT_ONCE = 2  # of a training batch: rows of about one length, so that little is filled up


@dataclass(frozen=True)
class Training:
    """Settings of every training, whatever chose the rows."""

    model: str = "demo"
    epochs: int = 2
    batch_rows: int = 8
    learning_rate: float = 5e-4
    lora_rank: int = 16
    max_tokens: int = 512  # of a row to train on; rows to evaluate on are never cut
    bf16: bool = True

    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32

    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Loss:
    """Of the answers of some rows: summed negative log-likelihood in nats, and tokens, of each row."""

    nats: list[float]
    tokens: list[int]

    def mean(self) -> float:
        """Return nats per token."""
        return sum(self.nats) / sum(self.tokens)


@dataclass(frozen=True)
class Encoded:
    """A row's tokens: `prompt_tokens` of them are not its answer."""

    token_ids: list[int]
    prompt_tokens: int


def model_name(name: str) -> str:
    return str(model_path()) if name == "demo" else name


@cache
def tokenizer_of(name: str) -> Any:
    return AutoTokenizer.from_pretrained(model_name(name))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def as_turns(rows: Iterable[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """Return rows as the package hands them to TRL: prompt and completion."""
    spec = DatasetSpec(path="memory")
    parsed = [parse_chosen(row, str(row.get("id", number)), spec) for number, row in enumerate(rows)]
    return list(Dataset(InMemoryTable(training_table(parsed, tokenizer_of(model), "auto", whole=False))))


def train(rows: Sequence[dict[str, Any]], settings: Training, seed: int, out: Path) -> float:
    """Train an adapter on the rows, leave it in `out`, and return the seconds of it.

    The seed decides the adapter's start and the order of the rows, which come sorted by id whatever chose them. A loop
    of its own, not TRL's: on a CPU, an output layer that is computed for answer tokens only halves the time.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import get_cosine_schedule_with_warmup, set_seed

    began = time.perf_counter()
    set_seed(seed)
    lora = LoraConfig(r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules="all-linear")
    model = AutoModelForCausalLM.from_pretrained(model_name(settings.model), dtype=settings.dtype())
    # PEFT would keep the adapter in float32, and cast every input to it; here only the optimizer's copy is.
    model = get_peft_model(model, lora, autocast_adapter_dtype=False).to(settings.device(), settings.dtype()).train()
    fuse(model)
    turns = sorted(as_turns(rows, settings.model), key=lambda row: row["id"])
    encoded = encode(turns, settings.model, settings.max_tokens)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    precise = [weight.detach().float().clone().requires_grad_() for weight in weights]
    optimizer = torch.optim.AdamW(precise, lr=settings.learning_rate)
    steps = settings.epochs * -(-len(encoded) // settings.batch_rows)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    shuffled = torch.Generator().manual_seed(seed)
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(encoded), generator=shuffled).split(settings.batch_rows):
            add_gradients(model.get_base_model(), [encoded[row] for row in batch])
            for weight, copy in zip(weights, precise, strict=True):
                copy.grad, weight.grad = weight.grad.float(), None
            torch.nn.utils.clip_grad_norm_(precise, 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for weight, copy in zip(weights, precise, strict=True):
                    weight.copy_(copy)
    model.save_pretrained(str(out))
    return time.perf_counter() - began


def add_gradients(model: Any, batch: Sequence[Encoded]) -> None:
    """Add the gradients of a batch's mean loss per answer token, a few rows at a time."""
    ordered = sorted(batch, key=lambda row: len(row.token_ids))
    tokens = sum(len(row.token_ids) - row.prompt_tokens for row in batch)
    for start in range(0, len(ordered), _ROWS_AT_ONCE):
        states, labels, _ = answer_states(model, ordered[start : start + _ROWS_AT_ONCE])
        (cross_entropy(model.lm_head(states).float(), labels, reduction="sum") / tokens).backward()


def load(settings: Training, adapter: Path | None) -> Any:
    """Return the model with the adapter beside it.

    Not merged: rounded to bfloat16, the sum of a weight and its change loses most of the change.
    """
    model = AutoModelForCausalLM.from_pretrained(model_name(settings.model), dtype=settings.dtype())
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False)
        fuse(model)
    return model.to(settings.device(), settings.dtype()).eval()


def fuse(model: Any) -> None:
    """Let each adapted layer add scaling * B A x to W x in one operation: PEFT's take as long again as the model."""
    from peft.tuners.lora import Linear

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        own: torch.Tensor = self.base_layer(x)
        low = self.lora_A["default"](x).flatten(0, -2)
        up = self.lora_B["default"].weight
        return torch.addmm(own.flatten(0, -2), low, up.t(), alpha=self.scaling["default"]).view_as(own)

    for module in model.modules():
        if isinstance(module, Linear):
            module.forward = MethodType(forward, module)


def answer_states(model: Any, batch: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the states (T, H) before all answer tokens of a batch, these tokens (T,), and the row (T,) of each."""
    longest = max(len(row.token_ids) for row in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    is_answer = torch.zeros_like(ids, dtype=torch.bool)
    for at, row in enumerate(batch):
        ids[at, : len(row.token_ids)] = torch.tensor(row.token_ids)
        is_answer[at, row.prompt_tokens : len(row.token_ids)] = True
    labels, rows = ids[is_answer], is_answer.nonzero()[:, 0]
    before = is_answer.roll(-1, dims=1)  # a prompt comes first, so nothing rolls round
    # Filled up at the end, which no earlier token sees.
    states = model.model(input_ids=ids.to(model.device)).last_hidden_state[before.to(model.device)]
    return states, labels.to(model.device), rows


@torch.no_grad()
def answer_loss(model: Any, rows: Sequence[dict[str, Any]], settings: Training, batch_rows: int = 16) -> Loss:
    """Return the loss of the reference responses, in the order of the rows."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # the adapter is in its layers
    encoded = encode(as_turns(rows, settings.model), settings.model)
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row].token_ids))
    nats, tokens = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.long)
    for start in range(0, len(order), batch_rows):
        batch = torch.tensor(order[start : start + batch_rows])
        states, labels, of = answer_states(model, [encoded[row] for row in batch])
        some = zip(states.split(_TOKENS_AT_ONCE), labels.split(_TOKENS_AT_ONCE), strict=True)
        each = [cross_entropy(model.lm_head(s).float(), tokens, reduction="none") for s, tokens in some]
        nats.index_add_(0, batch[of], torch.cat(each).double().cpu())
        tokens.index_add_(0, batch[of], torch.ones_like(of))
    return Loss(nats.tolist(), tokens.tolist())


def encode(turns: Iterable[dict[str, Any]], model: str, most: int | None = None) -> list[Encoded]:
    """Return each row's tokens: the prompt as the chat template writes it, the answer, the end of the answer.

    A row of more than `most` tokens is cut off there; its last token is always one of the answer.
    """
    tokenizer, found = tokenizer_of(model), []
    for row in turns:
        prompt = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        answer = tokenizer(row["completion"][0]["content"] + tokenizer.eos_token, add_special_tokens=False).input_ids
        tokens = [*prompt, *answer][:most]
        found.append(Encoded(tokens, min(len(prompt), len(tokens) - 1)))
    return found
