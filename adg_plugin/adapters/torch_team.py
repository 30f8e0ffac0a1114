"""The processes of a torch.distributed job as a team that shares one selection."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from adg_plugin.adapters.heartbeat import RESUMES, Heartbeat
from adg_plugin.errors import ADGError
from adg_plugin.pipeline.ranks import SingleProcess, Team

logger = logging.getLogger(__name__)

_TRANSFER = timedelta(minutes=10)  # of what ranks tell one another, once all have come to tell it


class TorchTeam:
    """Talks over a gloo group of its own, in JSON: collectives of torch for objects would pickle them."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=_TRANSFER)
        # One rank waits for hours while another samples: no collective of torch is begun before all are there.
        self._heartbeat = Heartbeat(self.rank, self.size, lambda text: self._exchange(text)[0])

    @contextmanager
    def barrier(self, name: str) -> Iterator[None]:
        """Leave together with all processes; an ADGError names another process that failed, and its error."""
        try:
            with self._heartbeat.working():
                yield
        except Exception as err:
            # At once: the others may work for hours before they hear of it.
            logger.error("rank %d failed while %s: %s", self.rank, name, err)
            with suppress(ADGError):  # of others that have ended: this one's error is the one to see
                self._gather(f"{type(err).__name__}: {err}")
            raise
        # An interrupted process does not get here: it ends, and its launcher ends the others.
        failed = {rank: text for rank, text in enumerate(self._gather("")) if text}
        if failed:
            rank, text = next(iter(failed.items()))
            raise ADGError(f"rank {rank} failed while {name}: {text}")

    def broadcast(self, value: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Return the JSON object of rank 0."""
        text = self._gather(json.dumps(value) if self.rank == 0 else "")[0]
        shared: Mapping[str, Any] = json.loads(text)
        return shared

    def gather(self, value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the JSON objects of all ranks."""
        return [json.loads(text) for text in self._gather(json.dumps(value))]

    def _gather(self, text: str) -> list[str]:
        """Return the texts of all ranks, once all have come here; an ADGError names those that are gone."""
        self._heartbeat.meet()
        return self._exchange(text)

    def _exchange(self, text: str) -> list[str]:
        mine = torch.tensor(list(text.encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        try:
            dist.all_gather(sizes, torch.tensor([len(mine)]), group=self._group)
            longest = max(int(size) for size in sizes)
            if not longest:
                return [""] * self.size
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(mine)] = mine
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(texts, padded, group=self._group)
        except RuntimeError as err:  # gloo's, when a connection is closed
            raise ADGError(f"another rank has ended: its own messages say why. {RESUMES}") from err
        return [bytes(t[: int(n)].tolist()).decode() for t, n in zip(texts, sizes, strict=True)]


def this_team() -> Team:
    """Return the team of this process: that of the torch.distributed job, where there is one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return TorchTeam()
    return SingleProcess()


@contextmanager
def launched_team() -> Iterator[Team]:
    """Yield the team of a process that `torchrun` or `accelerate launch` started; alone without them.

    Each process sees its own accelerator only, so that `device: auto` is that one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield SingleProcess()
        return
    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible is not None else [str(n) for n in range(torch.cuda.device_count())]
    if local < len(devices):  # fewer where ranks share CPUs
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[local]
    if torch.accelerator.is_available() and torch.accelerator.device_count() > 1:
        torch.accelerator.set_device_index(local % torch.accelerator.device_count())  # the variable came too late
    dist.init_process_group("gloo")
    try:
        yield TorchTeam()
    finally:
        dist.destroy_process_group()
