"""What `demo` stands for in a config: the pool shipped with the package, and a small real model."""

from __future__ import annotations

from pathlib import Path

from adg_plugin.demo.model import model_path

__all__ = ["model_path", "pool_paths"]


def pool_paths() -> tuple[Path, ...]:
    """Return the JSONL files of the demo pool, in a fixed order."""
    return tuple(sorted(Path(__file__).parent.glob("*.jsonl")))
