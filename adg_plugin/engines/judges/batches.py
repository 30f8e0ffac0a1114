"""Work in batches of items of similar length, smaller ones once memory has run out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from adg_plugin.engines.forward.memory import is_out_of_memory, release_memory

T = TypeVar("T")
R = TypeVar("R")


class Batches:
    """Cuts work into batches that fit into memory.

    Args:
        most: of a batch, in the unit of the items' width: their number times the greatest of their widths. Halved when
            memory runs out; raised to half of this again when even one item does not fit, for that one is gone then.
        device: of the model that does the work.
        by_number: `most` counts the items, whatever their width.
    """

    def __init__(self, most: int, device: torch.device, *, by_number: bool = False) -> None:
        self._first = self._most = most
        self._device, self._by_number = device, by_number

    @classmethod
    def of_tokens(cls, given: int | None, device: torch.device, *, cpu: int, accelerator: int) -> Batches:
        """Return batches of so many tokens as are given, or by the kind of device."""
        return cls(given or (cpu if device.type == "cpu" else accelerator), device)

    def run(
        self, items: Sequence[T], width: Callable[[T], int], work: Callable[[Sequence[T]], Sequence[R]]
    ) -> Iterator[tuple[Sequence[T], Sequence[R] | None]]:
        """Yield batches and their results as soon as they are there, the widest items first.

        Args:
            items: in any order.
            width: >= 1, of one item.
            work: a batch -> a result for each of its items.

        Yields:
            Items and results; None with a single item that does not fit even alone.
        """
        order = sorted(items, key=width, reverse=True)
        start = 0
        while start < len(order):
            widest = 1 if self._by_number else width(order[start])
            batch = order[start : start + max(1, self._most // widest)]
            results: Sequence[R] | None = None
            try:
                results = work(batch)
            except (RuntimeError, MemoryError) as err:
                if not is_out_of_memory(err):
                    raise
            if results is None:  # outside the handler: its traceback holds the tensors that did not fit
                release_memory(self._device)
                if len(batch) > 1:
                    self._most = len(batch) * widest // 2
                    continue
                self._most = max(1, self._first // 2)
            yield batch, results
            start += len(batch)
