"""The run folder: staged prompts, answers part by part, scores, the chosen rows; safe against crashes at any moment."""

from adg_plugin.store.assemble import Geometry, GramGroup
from adg_plugin.store.folder import RunFolder
from adg_plugin.store.reader import Counts, RunReader
from adg_plugin.store.staging import Rejection, StagedRow

__all__ = ["Counts", "Geometry", "GramGroup", "Rejection", "RunFolder", "RunReader", "StagedRow"]
