"""A sampler and an encoder as one engine: rows are embedded here while the next are sampled elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from adg_plugin.engines.base import Encoder, Sampler
from adg_plugin.store.records import Prompt, RowResult, Sampled

_ROWS = 64  # embedded together: enough to sort by length, few enough to lose in a crash


class SplitEngine:
    """Samples with `sampler`, which goes on while rows are embedded, as servers do, and embeds with `encoder`."""

    def __init__(self, sampler: Sampler, encoder: Encoder) -> None:
        self._sampler, self._encoder = sampler, encoder

    def run(self, prompts: Iterable[Prompt], /) -> Iterator[RowResult]:
        """Yield one result per prompt, in the order in which they finish."""
        in_flight: dict[str, Prompt] = {}

        def remembered() -> Iterator[Prompt]:
            for prompt in prompts:
                in_flight[prompt.id] = prompt
                yield prompt

        drawn = self._sampler.run(remembered())
        while chunk := list(islice(drawn, _ROWS)):
            prompts_of = {result.id: in_flight.pop(result.id) for result in chunk}
            whole = [Sampled(prompts_of[r.id], r.answers) for r in chunk if r.reason is None]
            yield from self._encoder.run(whole)
            yield from (result for result in chunk if result.reason is not None)

    def close(self) -> None:
        """Close the sampler."""
        self._sampler.close()
