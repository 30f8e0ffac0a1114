"""Models to evaluate, and the harness's task files read once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def harness() -> Iterator[None]:
    """The harness, which reads its thousands of own task files once, not for each test: that takes seconds."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-evaluation-harness is not installed: extra eval")
    own = str(Path(tasks.__file__).parent)
    read = tasks.TaskManager._get_task_and_group
    index: dict[str, Any] = {}

    def remembered(self: Any, folder: str) -> Any:
        if not folder.startswith(own):
            return read(self, folder)
        if folder not in index:
            index[folder] = read(self, folder)
        return index[folder]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.TaskManager, "_get_task_and_group", remembered)
        yield


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, saved: Path) -> Path:
    """A LoRA adapter that changes what the tiny model says, beside a finished run folder."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    options = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False}
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(saved), peft.LoraConfig(task_type="CAUSAL_LM", **options)
    )
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.3)
    folder = tmp_path / "runs/demo/model"
    model.save_pretrained(folder)
    run = tmp_path / "runs/demo/selection"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"adg_run_folder": 1}))
    (run / "manifest.json").write_text(json.dumps({"created": "then", "files": {"selected.jsonl": {"blake2b": "d1"}}}))
    return folder
