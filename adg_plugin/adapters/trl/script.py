"""What `accelerate launch` starts for `adg sft` and for the training of `adg run`: TRL's SFT on the chosen rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, set_seed

from adg_plugin.adapters.processes import follow, guarded
from adg_plugin.adapters.trl.arguments import NO_MODEL, Request, read_command
from adg_plugin.adapters.trl.checks import check_pool, check_settings, trl
from adg_plugin.adapters.trl.choice import ChosenIds, KeepChosenIds, checkpoint_of, evaluation_rows, prepared_counts
from adg_plugin.adapters.trl.plan import evaluation_set, training_set
from adg_plugin.adapters.trl.run import SUMMARY
from adg_plugin.config.run_folder import PRIVATE, publication_problems, run_folder
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, DataError, StoreError
from adg_plugin.pipeline.in_memory import model_problems, rows_digest
from adg_plugin.pipeline.training_rows import TRAINING_FILE
from adg_plugin.store import RunFolder
from adg_plugin.store.files import make_folder, write_json

_YES, _NO = ("true", "last", "auto", "yes"), ("false", "none", "no", "")


def main() -> None:
    """Select and train, or train on a finished run folder; writes model, checkpoints and adg_summary.json."""
    follow()
    began = time.monotonic()
    request = read_command(sys.argv[1:])
    output_dir = request.training.output_dir
    set_seed(request.training.seed)  # a random test split is then the same in every process, and on resume
    checkpoint = checkpoint_of(resume_value(request.training.resume_from_checkpoint), Path(output_dir))
    trainer, counts = of_run_folder(request, checkpoint) if request.run_folder else (_selecting(request), None)
    resumed_from = None if checkpoint is None else str(checkpoint)
    outcome = trainer.train(resume_from_checkpoint=resumed_from)
    trainer.save_model(output_dir)
    if trainer.args.process_index == 0:
        summary = {
            "rows": counts or trainer.selection_counts,
            **_progress(trainer.state),
            "mean_loss": outcome.training_loss,
            "seconds": time.monotonic() - began,
            "resumed_from": resumed_from,
            "model": str(Path(output_dir)),
            "kind": "adapter" if Path(output_dir, "adapter_config.json").is_file() else "full model",
            "run_folder": str(Path(run_folder(request.run_folder, request.adg.get("output_dir"), training=output_dir))),
        }
        make_folder(Path(output_dir, PRIVATE))
        write_json(Path(output_dir, PRIVATE, SUMMARY), summary)  # last, so it says that training is complete
    if request.training.push_to_hub:
        trainer.push_to_hub(dataset_name=_hub_name(request.script.dataset_name))
    if hasattr(trainer, "end"):  # since transformers 5.18: closes trackers and the process group
        trainer.end()


def _hub_name(name: str | None) -> str | None:
    """Return the name of a data set on the hub, for the model's card; None for one that others cannot find there."""
    return None if name is None or "://" in name or Path(name).expanduser().exists() else name


def resume_value(value: Any) -> Any:
    """Return what an argument `resume_from_checkpoint` means: a path, True for the last checkpoint, or None."""
    if isinstance(value, str):
        return True if value.lower() in _YES else None if value.lower() in _NO else value
    return value or None


def _progress(state: Any) -> dict[str, Any]:
    history = state.log_history
    return {
        "tokens": trained_tokens(entry["num_tokens"] for entry in history if "num_tokens" in entry),
        "steps": state.global_step,
        "epochs": state.epoch,
        "losses": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
    }


def trained_tokens(counts: Iterable[float]) -> int:
    """Return the tokens trained on; TRL's running count starts again at zero after a resume."""
    total = before = 0.0
    for count in counts:
        total += count - before if count >= before else count
        before = count
    return int(total)


def _trainer_arguments(request: Request) -> dict[str, Any]:
    training, model = request.training, request.model
    if model.model_name_or_path is None:
        raise ConfigError([NO_MODEL])
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
    return {
        "model": model.model_name_or_path,
        "args": training,
        "quantization_config": trl().get_quantization_config(model),
        "peft_config": trl().get_peft_config(model),
    }


def _selecting(request: Request) -> Any:
    """Return a trainer that selects from the data set of the request."""
    from adg_plugin.adapters.trl.trainer import ADGSFTTrainer

    arguments = _trainer_arguments(request)
    config = ADGConfig.parse(request.adg, prefix="adg.")
    problems = model_problems(config, arguments["model"])
    if config.datasets:
        problems.append(
            "adg.datasets is set: `adg sft` selects from the trainer's data set (dataset_name or datasets); "
            "`adg run` takes adg.datasets"
        )
    if problems:
        raise ConfigError(problems, source=request.source)
    check_settings(config, request.training)
    train, held_out = training_set(request), evaluation_set(request)
    check_pool(train)
    return ADGSFTTrainer(selection_config=config, train_dataset=train, eval_dataset=held_out, **arguments)


def of_run_folder(request: Request, checkpoint: Path | None = None) -> tuple[Any, dict[str, int]]:
    """Return a trainer on the rows of a finished run folder, which it remembers in its checkpoints, and its counts.

    Raises:
        StoreError: the run folder is not finished.
        DataError: it has no table of rows, or the checkpoint was trained on others.
    """
    arguments = _trainer_arguments(request)
    training, model = request.training, request.model
    run_dir = Path(request.run_folder or "")
    if training.push_to_hub and (problems := publication_problems(run_dir, training.output_dir)):
        raise ConfigError(problems, source=request.source)
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
    chosen = ChosenIds(tuple(rows["id"]), rows_digest(rows))
    if checkpoint is not None and (before := ChosenIds.read(checkpoint)).digest != chosen.digest:
        raise DataError(
            f"{checkpoint} was trained on {len(before.ids)} other rows than the {len(chosen.ids)} that {run_dir} holds "
            "now (the pool or the selection's settings have changed): give another output_dir, or go back"
        )
    if (held_out := evaluation_set(request)) is not None:
        tokenizer = None  # where the trainer is given a chat template
        if not training.chat_template_path:
            tokenizer = AutoTokenizer.from_pretrained(
                arguments["model"], revision=model.model_revision, trust_remote_code=training.trust_remote_code
            )
        held_out = evaluation_rows(held_out, tokenizer, manifest["config"]["template"])
    trainer = trl().SFTTrainer(train_dataset=rows, eval_dataset=held_out, **arguments)
    output_dir = Path(trainer.args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    if trainer.args.should_save:
        chosen.write(output_dir)
    trainer.add_callback(KeepChosenIds(chosen))
    counts = prepared_counts(len(chosen.ids), trainer.train_dataset, trainer.args)
    return trainer, {"pool": manifest["rows"]["pool"], **counts}


if __name__ == "__main__":
    guarded(main)
