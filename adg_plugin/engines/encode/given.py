"""Answers that exist already, in the place of a sampler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adg_plugin.store.records import Prompt, RowResult


class GivenAnswers:
    """Hands on the answers that prompts were given; see `adg_plugin.pipeline.given`."""

    def run(self, prompts: Iterable[Prompt], /) -> Iterator[RowResult]:
        """Yield one result without vectors per prompt, in their order."""
        for prompt in prompts:
            assert prompt.given is not None
            yield RowResult(prompt.id, prompt.key, prompt.given, None, None)

    def close(self) -> None:
        """Do nothing: it holds nothing."""
