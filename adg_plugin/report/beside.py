"""What lies beside a selection in its run folder: choices of other methods, and evaluations of trained models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adg_plugin.errors import StoreError
from adg_plugin.report.compared import overlaps, read_compared
from adg_plugin.report.evaluated import read_evaluations
from adg_plugin.report.figures import Figure
from adg_plugin.store import RunReader


@dataclass(frozen=True, slots=True)
class Beside:
    """What was found beside the selection.

    Attributes:
        comparison: as `read_compared` returns it.
        evaluations: of each file of results, by name.
        figures: of the comparison.
        warnings: sentences on files that cannot be used, and on figures that do not compare.
    """

    comparison: dict[str, Any] | None
    evaluations: list[dict[str, Any]]
    figures: tuple[Figure, ...]
    warnings: list[str]


def read_beside(run: RunReader, manifest: Mapping[str, Any] | None) -> Beside:
    """Return what lies beside the selection; a file that cannot be used is a warning, and no reason to fail.

    Args:
        manifest: of the selection; None: there is none.
    """
    warnings: list[str] = []
    comparison = None
    try:
        comparison = read_compared(run, manifest)
    except StoreError as err:
        warnings.append(str(err))
    evaluations, more = read_evaluations(run.path, manifest)
    several = comparison if comparison and len(comparison["names"]) > 1 else None
    return Beside(comparison, evaluations, (overlaps(several),) if several else (), [*warnings, *more])
