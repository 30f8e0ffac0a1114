"""Prompts on their way into the one-pass engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from adg_plugin.engines.forward.decode_group import DecodeGroup
from adg_plugin.engines.forward.memory import Capacity
from adg_plugin.store.records import Prompt


class Queue:
    """Prompts still to be admitted, read from their source only as far as needed."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._source = iter(prompts)
        self._waiting: deque[Prompt] = deque()

    def _fill(self, count: int) -> bool:
        while len(self._waiting) < count:
            prompt = next(self._source, None)
            if prompt is None:
                return False
            self._waiting.append(prompt)
        return True

    def peek(self, capacity: Capacity, decode_groups: Sequence[DecodeGroup]) -> list[Prompt]:
        """Return the next prompts that fit next to `decode_groups`, at least one where there are none."""
        rows, tokens = capacity.admits(decode_groups)
        chosen: list[Prompt] = []
        while self._fill(len(chosen) + 1):
            prompt = self._waiting[len(chosen)]
            rows, tokens = rows - capacity.num_samples, tokens - capacity.cost(len(prompt))
            if (rows < 0 or tokens < 0) and (chosen or decode_groups):
                break
            chosen.append(prompt)
        return chosen

    def drop(self, count: int) -> None:
        """Forget the first `count` prompts: they are admitted."""
        for _ in range(count):
            self._waiting.popleft()

    def pop(self) -> Prompt:
        """Return the first prompt, and forget it."""
        return self._waiting.popleft()

    def put_back(self, prompts: Sequence[Prompt]) -> None:
        """Put prompts before all others, in their order."""
        self._waiting.extendleft(reversed(prompts))

    def empty(self) -> bool:
        """Return whether no prompt is left."""
        return not self._fill(1)


def prefix_within(prompts: Sequence[Prompt], tokens: int) -> Sequence[Prompt]:
    """Return the first prompts that hold at most `tokens` together, reference responses included; at least one."""
    ends = np.cumsum([len(p) + p.reference_tokens for p in prompts])
    return prompts[: max(1, int(np.searchsorted(ends, tokens, side="right")))]
