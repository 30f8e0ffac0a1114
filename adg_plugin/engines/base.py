"""What goes into an engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from adg_plugin.store.records import Prompt, RowResult, Sampled


class Engine(Protocol):
    """Draws K answers per prompt and embeds them."""

    def run(self, prompts: Iterable[Prompt], /) -> Iterator[RowResult]:
        """Yield one result per prompt, in the order in which they finish."""
        ...


class Sampler(Protocol):
    """Draws K answers per prompt and leaves it to an `Encoder` to embed them."""

    def run(self, prompts: Iterable[Prompt], /) -> Iterator[RowResult]:
        """Yield one result without vectors per prompt, in the order in which they finish."""
        ...

    def close(self) -> None:
        """Give back what it holds: memory, processes, connections."""
        ...


class Encoder(Protocol):
    """Embeds answers that were sampled before."""

    def run(self, rows: Iterable[Sampled], /) -> Iterator[RowResult]:
        """Yield one result per row, in the order in which they finish."""
        ...
