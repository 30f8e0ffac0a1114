"""Ranks of a job in processes of their own, forked from one that has torch: each test takes a second or two."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any

from adg_plugin.adapters import heartbeat
from adg_plugin.adapters.torch_team import TorchTeam, launched_team

Work = Callable[[TorchTeam, "Queue[Any]"], object]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["adg_plugin.adapters.torch_team"])


@contextmanager
def ranks(count: int, work: Work, *, silence_s: float = 30.0) -> Iterator[tuple[list[Any], Queue[Any]]]:
    """Start `count` ranks that do `work`, a function of a module; yield them, and what they put: (rank, anything)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told: Queue[Any] = _context.Queue()
    started = [_context.Process(target=_rank, args=(n, count, port, work, silence_s, told)) for n in range(count)]
    for process in started:
        process.start()
    try:
        yield started, told
    finally:
        for process in started:
            process.kill()
            process.join()


def _rank(rank: int, count: int, port: str, work: Work, silence_s: float, told: Queue[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a job that a script has put into the background
    heartbeat._SILENCE_S = silence_s
    heartbeat._BEAT_S = 0.02
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    try:
        with launched_team() as team:
            found = work(team, told)
    except Exception as err:
        found = f"{type(err).__name__}: {err}"
    told.put((rank, found, time.monotonic()))
