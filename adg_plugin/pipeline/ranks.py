"""Several processes share the sampling of one run folder, by the hash of the row; the first of them owns the folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from adg_plugin.errors import StoreError
from adg_plugin.store import RunFolder, RunReader
from adg_plugin.store.lookup import results_of
from adg_plugin.store.records import Prompt
from adg_plugin.store.staging import row_digest

RANKS = "ranks"  # within the run folder: what the other processes found, until the first one takes it over

_MERGED = ".absorbed-"


class Team(Protocol):
    """The processes of one training run."""

    rank: int  # number of this process; 0 owns the run folder
    size: int

    def barrier(self, name: str) -> AbstractContextManager[None]:
        """Return a context that all processes leave together; an error in one of them is raised in all."""

    def broadcast(self, value: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Return the JSON object of process 0; the others pass None."""

    def gather(self, value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the JSON objects of all processes, by rank."""


class SingleProcess:
    """A team of one."""

    rank = 0
    size = 1

    def barrier(self, name: str) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def broadcast(self, value: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Return the value."""
        assert value is not None
        return value

    def gather(self, value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the value alone."""
        return [value]


def is_mine(prompt: Prompt, team: Team) -> bool:
    """Return whether this process is to sample the prompt; exactly one of the team is."""
    return int.from_bytes(row_digest(prompt.id, prompt.key)[:8], "big") % team.size == team.rank


def my_windows(run: RunReader, team: Team) -> Iterator[list[Prompt]]:
    """Yield this process's share of the prompts without answers, about 2,000 of the pool at a time."""
    for window in run.iter_windows(unsampled_only=True):
        mine = [prompt for prompt in window if is_mine(prompt, team)]
        if mine:
            yield mine


def merge_rank_results(run: RunFolder) -> None:
    """Move what other processes found, also in a run cut off, into the run folder; a StoreError if one is at work."""
    for leftover in _folders(run.path, f"{_MERGED}*"):  # of a process that was killed while it removed one
        shutil.rmtree(leftover)
    for folder in (path for path in _folders(run.path / RANKS, "*") if path.name.isdecimal()):
        with RunFolder.open(folder, create=False) as helper:
            for result in results_of(helper.stock.parts, helper.stock.completed):
                run.append(result)
            for result in results_of(helper.samples_stock.parts, helper.samples_stock.completed):
                run.append_sample(result)
            run.flush()
        # Out of the way first: half a folder could neither be read nor be taken for something else.
        shutil.rmtree(folder.rename(run.path / f"{_MERGED}{folder.name}"))


def _folders(parent: Path, pattern: str) -> list[Path]:
    """Return the folders of such names; whatever else lies there is not ours."""
    return sorted(path for path in parent.glob(pattern) if path.is_dir())


@contextmanager
def shared(run: RunFolder | None, run_dir: Path, team: Team) -> Iterator[tuple[RunReader, RunFolder]]:
    """Yield what to read the pool from and where results go; a StoreError if it is unseen or unwritable.

    Both are the run folder where this process holds it; else its own folder in that one, locked, takes the results.
    """
    if run is not None:
        run.flush()  # answers still in memory can be neither read nor embedded
        yield run, run
        return
    if not run_dir.is_dir():
        raise StoreError(
            f"rank {team.rank} sees no run folder {run_dir}: put it on a file system that all machines share, "
            "or select first with `adg run`"
        )
    pool = RunFolder.read(run_dir)
    with RunFolder.open(run_dir / RANKS / str(team.rank)) as mine:
        yield pool, mine
