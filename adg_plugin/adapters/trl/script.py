"""What `accelerate launch` starts for `adg sft` and for the training of `adg run`: TRL's SFT on the chosen rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adg_plugin.adapters.processes import follow, guarded
from adg_plugin.adapters.trl.arguments import Request, check, read_command
from adg_plugin.adapters.trl.checks import check_pool, check_settings
from adg_plugin.adapters.trl.contract import trl
from adg_plugin.adapters.trl.data import evaluation_set, training_set
from adg_plugin.adapters.trl.rows import as_trl
from adg_plugin.adapters.trl.summary import write_summary
from adg_plugin.config.run_folder import run_folder
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, DataError, StoreError
from adg_plugin.pipeline.training_rows import TRAINING_FILE

_YES, _NO = ("true", "last", "auto", "yes"), ("false", "none", "no", "")


@dataclass(frozen=True, slots=True)
class Job:
    """A trainer that is ready, and what it is to do."""

    trainer: Any
    checkpoint: Path | None
    run_dir: Path

    @property
    def counts(self) -> dict[str, int]:
        """Rows of the pool, chosen and trained, after training."""
        return dict(self.trainer.selection_counts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Select and train, or train on a finished run folder; writes model, checkpoints and adg_summary.json."""
    follow()
    began = time.monotonic()
    request = check(read_command(sys.argv[1:] if arguments is None else arguments))
    from transformers import set_seed

    set_seed(request.training.seed)  # a random test split is then the same in every process, and on resume
    _take_model_arguments(request)
    job = _of_run_folder(request) if request.given.run_folder else _selecting(request)
    trainer, output_dir = job.trainer, request.training.output_dir
    outcome = trainer.train(resume_from_checkpoint=None if job.checkpoint is None else str(job.checkpoint))
    trainer.save_model(output_dir)
    if trainer.args.process_index == 0:
        resumed = None if job.checkpoint is None else str(job.checkpoint)
        write_summary(trainer, outcome, job.counts, job.run_dir, resumed, time.monotonic() - began)
    if request.training.push_to_hub:
        trainer.push_to_hub(dataset_name=request.script.dataset_name)
    if hasattr(trainer, "end"):  # since transformers 5.18: closes trackers and the process group
        trainer.end()


def resume_value(value: Any) -> Any:
    """Return what an argument `resume_from_checkpoint` means: a path, True for the last checkpoint, or None."""
    if isinstance(value, str):
        return True if value.lower() in _YES else None if value.lower() in _NO else value
    return value or None


def _take_model_arguments(request: Request) -> None:
    training, model = request.training, request.model
    if model.model_name_or_path is None:
        raise ConfigError(
            ["model_name_or_path is missing: set it to the model to train (a folder, a hub name, `demo`)"]
        )
    if model.model_name_or_path == "demo":
        from adg_plugin.demo import model_path

        model.model_name_or_path = str(model_path())
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }


def _trainer_arguments(request: Request) -> dict[str, Any]:
    module = trl()
    return {
        "model": request.model.model_name_or_path,
        "args": request.training,
        "quantization_config": module.get_quantization_config(request.model),
        "peft_config": module.get_peft_config(request.model),
    }


def _selecting(request: Request) -> Job:
    from adg_plugin.adapters.trl.choice import checkpoint_of
    from adg_plugin.adapters.trl.trainer import ADGSFTTrainer
    from adg_plugin.pipeline.in_memory import model_problems

    config = ADGConfig.parse(request.adg, prefix="adg.")
    problems = model_problems(config, request.model.model_name_or_path)
    if config.datasets:
        problems.append(
            "adg.datasets is set: `adg sft` selects from the trainer's data set (dataset_name or datasets); "
            "`adg run` takes adg.datasets"
        )
    if problems:
        raise ConfigError(problems, source=request.given.source)
    check_settings(config, request.training)
    train, held_out = training_set(request), evaluation_set(request)
    check_pool(train)
    trainer = ADGSFTTrainer(
        selection_config=config, train_dataset=train, eval_dataset=held_out, **_trainer_arguments(request)
    )
    checkpoint = checkpoint_of(resume_value(request.training.resume_from_checkpoint), request.training.output_dir)
    return Job(trainer, checkpoint, Path(run_folder(config.output_dir, training=request.training.output_dir)))


def _of_run_folder(request: Request) -> Job:
    from datasets import Dataset

    from adg_plugin.adapters.trl.choice import ChosenIds, checkpoint_of
    from adg_plugin.adapters.trl.finished import FinishedTrainer
    from adg_plugin.pipeline.in_memory import rows_digest
    from adg_plugin.store import RunFolder

    run_dir = Path(request.given.run_folder or "")
    manifest = RunFolder.read(run_dir).manifest()
    if manifest is None:
        raise StoreError(f"run folder {run_dir} is not finished: run the selection to its end first")
    path = run_dir / TRAINING_FILE
    if not path.is_file():
        raise DataError(
            f"{run_dir} has no {TRAINING_FILE}: its chosen rows cannot be put into one table that TRL trains on; "
            "give all rows of the pool the same layout"
        )
    rows = Dataset.from_parquet(str(path))
    chosen = ChosenIds(tuple(rows["id"]), rows_digest(rows), str(run_dir))
    checkpoint = checkpoint_of(resume_value(request.training.resume_from_checkpoint), request.training.output_dir)
    if checkpoint is not None and (before := ChosenIds.read(checkpoint)).digest != chosen.digest:
        raise DataError(
            f"{checkpoint} was trained on {len(before.ids)} other rows than the {len(chosen.ids)} that {run_dir} holds "
            "now (the pool or the selection's settings have changed): give another output_dir, or go back"
        )
    held_out = evaluation_set(request)
    if held_out is not None:
        held_out = as_trl(held_out, _tokenizer(request), manifest["config"]["template"])
    trainer = FinishedTrainer(
        train_dataset=rows,
        eval_dataset=held_out,
        chosen=chosen,
        pool_rows=manifest["rows"]["pool"],
        **_trainer_arguments(request),
    )
    return Job(trainer, checkpoint, run_dir)


def _tokenizer(request: Request) -> Any:
    """Return the trained model's tokenizer, or None where the trainer is given a chat template."""
    from transformers import AutoTokenizer

    if request.training.chat_template_path:
        return None
    name, revision = request.model.model_name_or_path, request.model.model_revision
    return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=request.training.trust_remote_code)


if __name__ == "__main__":
    guarded(main)
