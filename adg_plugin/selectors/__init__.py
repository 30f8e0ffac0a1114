"""Who chooses the rows: ADG, and selectors to compare it with, of this package and of others (docs/selectors.md)."""

from adg_plugin.selectors.base import Selector, Task
from adg_plugin.selectors.candidates import Candidates, Picked

__all__ = ["Candidates", "Picked", "Selector", "Task"]
