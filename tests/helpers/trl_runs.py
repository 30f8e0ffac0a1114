"""What the TRL tests share: a tiny model on disk, pools in memory, trainers that record what they train on."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_models import save_tiny_model, tiny_tokenizer
from trl import SFTConfig

from adg_plugin.config.schema import ADGConfig

WORDS = ("cats", "dogs", "trees", "houses", "rivers", "birds", "cars", "books", "songs", "maps", "stones", "clouds")
SELECTION = ADGConfig(budget=6, num_samples=3, max_new_tokens=6, bins=1)
MARKED_TEMPLATE = (  # CHAT_TEMPLATE with marks around what the assistant says
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def asked(word: str) -> str:
    return f"Say something about {word}"


def pool(layout: str = "prompt_completion", words: tuple[str, ...] = WORDS) -> Dataset:
    def turns(word: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": asked(word)}, {"role": "assistant", "content": f"All {word}!"}]

    forms = {
        "prompt_completion": lambda w: {"prompt": turns(w)[:1], "completion": turns(w)[1:]},
        "text": lambda w: {"prompt": asked(w), "completion": f"All {w}!"},
        "messages": lambda w: {"messages": turns(w)},
        "alpaca": lambda w: {"instruction": "Say something about the input", "input": w, "output": f"All {w}!"},
        "sharegpt": lambda w: {
            "conversations": [{"from": "human", "value": asked(w)}, {"from": "gpt", "value": f"All {w}!"}]
        },
    }
    return Dataset.from_list([{"id": word, **forms[layout](word)} for word in words])


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], **settings)


def sft_config(folder: Path, **settings: Any) -> SFTConfig:
    # In float32: in bfloat16, losses of the two ends of TRL's range are rounded differently.
    plain = {"use_cpu": True, "bf16": False, "report_to": "none", "logging_steps": 1, "disable_tqdm": True}
    sizes = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "save_strategy": "no", "learning_rate": 1e-2}
    return SFTConfig(output_dir=str(folder), **{**plain, **sizes, **settings})


def record(trainer: Any) -> list[str]:
    """Return a list that fills with the text of every row that the trainer is fed, padding left out."""
    seen: list[str] = []
    collate = trainer.data_collator

    def collator(examples: list[dict[str, Any]]) -> Any:
        seen.extend(tiny_tokenizer().decode(example["input_ids"]) for example in examples)
        return collate(examples)

    trainer.data_collator = collator
    return seen


def words_in(texts: list[str]) -> set[str]:
    return {word for word in WORDS for text in texts if f"All {word}!" in text}


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer: Any, *, adapter: bool) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {name: weight.detach().clone() for name, weight in named if (".lora_" in name) == adapter}


def environment(**more: str) -> dict[str, str]:
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**os.environ, **quiet, "CUDA_VISIBLE_DEVICES": "", **more}


ADG = [sys.executable, "-c", "from adg_plugin.cli import main; main()"]
TRL = [sys.executable, "-c", "from trl.cli import main; main()"]


def finish(command: list[str], cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=580)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))
