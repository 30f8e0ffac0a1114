"""A finished run folder: its settings, and whether its answers are still there."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import StoreError
from adg_plugin.store import Geometry, RunReader


def finished(run: RunReader) -> ADGConfig:
    """Return the settings of the selection in a run folder; a StoreError where there is none yet."""
    manifest = run.manifest()
    if manifest is None:
        raise StoreError(f"{run.path} is not complete yet: run adg select on it")
    return ADGConfig.of_run(manifest["config"])


def check_answers(run: RunReader, geometry: Geometry) -> None:
    """Raise a StoreError where a finished run has lost answers of scored rows; `geometry` is before any filter."""
    answered = pa.array(geometry.ids, pa.string())
    if not pc.all(pc.is_in(run.scores()["id"], value_set=answered), min_count=0).as_py():
        raise lost_answers(run)


def lost_answers(run: RunReader) -> StoreError:
    """Return the error for a finished run folder whose answers were removed or damaged since."""
    return StoreError(f"{run.path} lost answers since it was finished: run adg select on it again")
