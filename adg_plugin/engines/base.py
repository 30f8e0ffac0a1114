"""What goes into an engine and what comes out of it, and the one sampler that needs no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from adg_plugin.store.records import Prompt, RowResult, Sampled


class Engine(Protocol):
    """Draws K answers per prompt and embeds them."""

    def run(self, prompts: Iterable[Prompt], /) -> Iterator[RowResult]:
        """Yield one result per prompt, in the order in which they finish."""
        ...


class Sampler(Engine, Protocol):
    """An engine that draws answers and yields them without vectors: it leaves it to an `Encoder` to embed them."""

    def close(self) -> None:
        """Give back what it holds: memory, processes, connections."""
        ...


class Encoder(Protocol):
    """Embeds answers that were sampled before."""

    def run(self, rows: Iterable[Sampled], /) -> Iterator[RowResult]:
        """Yield one result per row, in the order in which they finish."""
        ...


class GivenAnswers:
    """Hands on the answers that prompts were given; see `adg_plugin.pipeline.given`."""

    def run(self, prompts: Iterable[Prompt], /) -> Iterator[RowResult]:
        """Yield one result without vectors per prompt, in their order."""
        for prompt in prompts:
            assert prompt.given is not None
            yield RowResult(prompt.id, prompt.key, prompt.given, None, None)

    def close(self) -> None:
        """Do nothing: it holds nothing."""
