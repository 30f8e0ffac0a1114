"""Which ranks of a job are alive, and which have come to a meeting: threads of each rank tell all others."""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from adg_plugin.data.time_limit import raise_in
from adg_plugin.errors import ADGError, first_line

RESUMES = "What is sampled is kept; re-run the same command to resume"
_BEAT_S = 0.1
_BEATS_PER_S = 200  # of all ranks together: each beat of each brings the news of all
_SILENCE_S = 60.0  # of a rank that was killed, or whose machine is gone or frozen


class Heartbeat:
    """Lets ranks wait for one another for days, yet not for one that is gone.

    Each writes into a store of rank 0, several times in a second, how often it has done so and how many meetings it has
    come to, and reads what the others wrote.

    Args:
        announce: returns the text of rank 0 to all ranks, which call this together.

    Raises:
        ADGError: rank 0 cannot be reached.
    """

    def __init__(self, rank: int, size: int, announce: Callable[[str], str]) -> None:
        self._state = _State(rank, size)
        store = _store(rank, size, announce)
        # Two: a store whose machine is gone may never answer. They end with this object, so they know the state alone.
        threads = [
            threading.Thread(target=self._state.exchange, args=(store,), daemon=True, name="adg-heartbeat"),
            threading.Thread(target=self._state.watch, daemon=True, name="adg-heartbeat-watch"),
        ]
        for thread in threads:
            thread.start()
        weakref.finalize(self, _end, self._state.over, threads)

    def meet(self) -> None:
        """Return when all ranks have come to this meeting; an ADGError names those that are gone."""
        self._state.meet()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Interrupt the block by an ADGError, which names them, when other ranks are gone; in the main thread only."""
        state = self._state
        state.set_working(threading.current_thread() is threading.main_thread())
        try:
            yield
        except KeyboardInterrupt:
            if state.gone:
                raise ADGError(state.gone) from None
            raise
        finally:
            state.set_working(False)


def _store(rank: int, size: int, announce: Callable[[str], str]) -> Any:
    """Return the TCPStore of rank 0, with a beat of each rank in it."""
    timeout = timedelta(seconds=_SILENCE_S)
    tcp_store: Any = dist.TCPStore  # type: ignore[attr-defined]
    if rank == 0:
        store = tcp_store("localhost", 0, is_master=True, wait_for_workers=False, timeout=timeout)
        for other in range(size):
            store.set(str(other), "0 0 unknown")
        # The name by which the others have found this machine before.
        announce(f"{os.environ.get('MASTER_ADDR') or socket.gethostname()} {store.port}")
        return store
    host, port = announce("").split()
    try:
        return tcp_store(host, int(port), is_master=False, wait_for_workers=False, timeout=timeout)
    except RuntimeError as err:
        raise ADGError(
            f"rank {rank} cannot reach rank 0 at {host}:{port} ({first_line(err)}): open the ports between the machines"
        ) from err


def _interrupt_main(error: type[BaseException] | None) -> None:
    # Not by a signal: a job that a script has put into the background ignores SIGINT, and `interrupt_main` with it.
    raise_in(threading.main_thread().ident or 0, error)


def _end(over: threading.Event, threads: Sequence[threading.Thread]) -> None:
    """End the threads: one that is within torch while Python itself ends would take the process down."""
    over.set()
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(timeout=1.0)


class _State:
    """What the threads of a rank know."""

    def __init__(self, rank: int, size: int) -> None:
        self.over = threading.Event()
        self.gone = ""  # a sentence, once other ranks are
        self._rank = rank
        self._met = 0  # meetings that this rank has come to
        self._latest = [(0, 0, "unknown")] * size  # of each rank: its beat, its meetings, its host
        self._beat_s = max(_BEAT_S, size / _BEATS_PER_S)
        self._working = False
        self._changed = threading.Condition()

    def exchange(self, store: Any) -> None:
        """Write this rank's beat and read those of all, until the team is over or the store is gone."""
        host, beat = socket.gethostname(), 0
        ranks = [str(rank) for rank in range(len(self._latest))]
        while not self.over.wait(self._beat_s):
            beat += 1
            try:
                store.set(ranks[self._rank], f"{beat} {self._met} {host}")
                texts = [text.decode().split(maxsplit=2) for text in store.multi_get(ranks)]
            except dist.DistStoreError:  # no answer in time
                continue
            except RuntimeError:
                self._lose("rank 0 has ended: its own messages say why")
                return
            with self._changed:
                self._latest = [(int(beat), int(met), host) for beat, met, host in texts]
                self._changed.notify_all()

    def watch(self) -> None:
        """Find out who is gone, counting beats of this rank: a job that was suspended as a whole misses nobody."""
        seen, silent = self._latest, [0] * len(self._latest)
        while not self.over.wait(self._beat_s):
            latest = self._latest
            silent = [0 if new != old else count + 1 for new, old, count in zip(latest, seen, silent, strict=True)]
            seen = latest
            gone = [rank for rank, count in enumerate(silent) if count * self._beat_s >= _SILENCE_S]
            if self._rank in gone:  # not even its own beats come back from the store of rank 0
                gone = [0]
            if gone:
                names = ", ".join(f"rank {rank} (host {latest[rank][2]})" for rank in gone)
                self._lose(
                    f"nothing was heard of {names} for {_SILENCE_S:.0f} s: killed, or its machine is gone or frozen"
                )
                return

    def meet(self) -> None:
        """Wait for all ranks; an ADGError if some are gone."""
        with self._changed:
            self._met += 1
            while any(met < self._met for _, met, _ in self._latest):
                if self.gone:
                    raise ADGError(self.gone)
                self._changed.wait()

    def set_working(self, working: bool) -> None:
        """Set whether the main thread is to be interrupted when ranks are gone."""
        with self._changed:
            self._working = working
            if not working:
                _interrupt_main(None)

    def _lose(self, why: str) -> None:
        with self._changed:
            self.gone = f"{why}. {RESUMES}"
            self._changed.notify_all()
            if self._working:
                _interrupt_main(KeyboardInterrupt)
