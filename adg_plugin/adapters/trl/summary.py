"""What a finished training did, as JSON and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from adg_plugin.store.files import read_json, write_json
from adg_plugin.store.reader import REPORT

SUMMARY = "adg_summary.json"


def write_summary(
    trainer: Any, outcome: Any, counts: Mapping[str, int], run_dir: Path, resumed_from: str | None, seconds: float
) -> None:
    """Write adg_summary.json into the trainer's output folder; it comes last, so it says that training is complete."""
    history = trainer.state.log_history
    output_dir = Path(trainer.args.output_dir)
    adapter = (output_dir / "adapter_config.json").is_file()
    write_json(
        output_dir / SUMMARY,
        {
            "rows": dict(counts),
            "tokens": trained_tokens(entry["num_tokens"] for entry in history if "num_tokens" in entry),
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "losses": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
            "mean_loss": outcome.training_loss,
            "seconds": seconds,
            "resumed_from": resumed_from,
            "model": str(output_dir),
            "kind": "adapter" if adapter else "full model",
            "run_folder": str(run_dir),
        },
    )


def trained_tokens(counts: Iterable[float]) -> int:
    """Return the tokens trained on; TRL's running count starts again at zero after a resume."""
    total = before = 0.0
    for count in counts:
        total += count - before if count >= before else count
        before = count
    return int(total)


def read_summary(output_dir: Path) -> dict[str, Any] | None:
    """Return the summary of a finished training, or None."""
    return read_json(output_dir / SUMMARY, fix="delete it and run the same command again")


def print_training(summary: Mapping[str, Any], console: Console) -> None:
    """Print rows, tokens, steps, losses and where things are."""
    rows, losses = summary["rows"], summary["losses"]
    packed = f", packed into {rows['sequences']} sequences" if "sequences" in rows else ""
    ends = [losses[0], losses[-1]] if losses else []
    curve = "".join(f"{loss:.3f} at step {step}, " for step, loss in ends)
    lines = [
        f"rows     {rows['pool']} in the pool, {rows['chosen']} chosen, {rows['trained']} trained{packed}",
        f"training {summary['steps']} steps, {summary['tokens']:,} tokens, {summary['seconds']:.0f} s",
        f"loss     {curve}mean {summary['mean_loss']:.3f}",
        f"{summary['kind']}  {summary['model']}",
        f"selection {summary['run_folder']}",
    ]
    report = Path(summary["run_folder"]) / REPORT
    if report.is_file():
        lines.append(f"report   {report}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
