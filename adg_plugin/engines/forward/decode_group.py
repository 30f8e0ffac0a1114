"""The cache of the one-pass engine: prompts of one length, and answers of one age that share their keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

COLUMNS = 128  # prompts of a decode_group are padded to a multiple of this
_GROWTH = 64  # columns added at once to the answers' cache


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one layer, D wide: prompts (P, H, L, D), answers (P, H, W, T, D).

    Keys are in `_key_dtype`, values in the model's.
    """

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor


@dataclass(slots=True)
class DecodeGroup:
    """Prompts admitted together and their answers, one row of a (P, W) grid each, all of the same age.

    The prompts are of the same length but for padding to the next multiple of `COLUMNS`.

    Attributes:
        lengths: (P,) tokens of each prompt.
        columns: L, what the prompts are padded to.
        width: W, answers per prompt.
        live: (R,) places of the rows that are still being sampled, ascending, in a grid numbered row by row.
        age: answer tokens already in the cache.
    """

    lengths: Tensor
    columns: int
    width: int
    live: Tensor
    age: int = 0
    layers: dict[int, LayerCache] = field(default_factory=dict)
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)
    _row_of_place: Tensor | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], width: int, device: torch.device) -> DecodeGroup:
        """Return an empty group, `width` answers per prompt; a ValueError where `lengths` pad to different columns."""
        columns = {padded(n) for n in lengths}
        if len(columns) != 1:
            raise ValueError(f"prompts of {min(lengths)} to {max(lengths)} tokens do not make one decode_group")
        live = torch.arange(len(lengths) * width, device=device)
        return cls(torch.tensor(lengths, device=device), columns.pop(), width, live)

    @property
    def places(self) -> int:
        """Rows of the grid, live or not."""
        return len(self.lengths) * self.width

    @property
    def full(self) -> bool:
        """Whether every place is live, so that rows need no scattering."""
        return len(self.live) == self.places

    def positions(self) -> Tensor:
        """Return the position of the token each live row feeds next, (R,)."""
        return self.lengths[self.live // self.width] + self.age

    def store_prompt(self, layer: int, number: int, keys: Tensor, values: Tensor) -> None:
        """Keep the keys and values (H, L, D) of a prompt."""
        if layer not in self.layers:
            heads, _, dim = keys.shape
            shapes = (len(self.lengths), heads, self.columns, dim), (len(self.lengths), heads, self.width, 0, dim)
            of_keys = [keys.new_zeros(shape, dtype=_key_dtype(keys)) for shape in shapes]
            of_values = [values.new_zeros(shape) for shape in shapes]
            self.layers[layer] = LayerCache(of_keys[0], of_values[0], of_keys[1], of_values[1])
        cache, length = self.layers[layer], keys.shape[1]
        cache.prompt_keys[number, :, :length] = keys
        cache.prompt_values[number, :, :length] = values

    def append(self, layer: int, keys: Tensor, values: Tensor) -> LayerCache:
        """Write keys and values (P, W, H, D) at column `age` and return the layer's cache."""
        cache = self.layers[layer]
        if self.age == cache.keys.shape[3]:
            shape = (*cache.keys.shape[:3], _GROWTH, cache.keys.shape[4])
            cache.keys = torch.cat((cache.keys, cache.keys.new_zeros(shape)), dim=3)
            cache.values = torch.cat((cache.values, cache.values.new_zeros(shape)), dim=3)
        cache.keys[:, :, :, self.age] = keys.transpose(1, 2)
        cache.values[:, :, :, self.age] = values.transpose(1, 2)
        return cache

    def to_grid(self, rows: Tensor) -> Tensor:
        """Return the live rows' values (R, ...) as (P, W, ...); a place that is not live gets some row's."""
        if not self.full:
            if self._row_of_place is None:
                self._row_of_place = torch.zeros(self.places, dtype=torch.long, device=rows.device)
                self._row_of_place[self.live] = torch.arange(len(self.live), device=rows.device)
            rows = rows[self._row_of_place]
        return rows.view(len(self.lengths), self.width, *rows.shape[1:])

    def from_grid(self, grid: Tensor) -> Tensor:
        """Return the live rows' values (R, ...) of (P, W, ...)."""
        rows = grid.flatten(0, 1)
        return rows if self.full else rows[self.live]

    def step(self) -> None:
        """Count the column that every layer has just written."""
        self.age += 1
        self._masks = {key: mask for key, mask in self._masks.items() if key is None}

    def keep(self, live: Tensor) -> None:
        """Go on with the places `live` only, and drop prompts that have none left once they take much room.

        A prompt with a live row keeps all its places: in a narrower grid the products would round differently.
        """
        self.live, self._row_of_place = live, None
        if len(live) == 0 or len(live) > 0.6 * self.places:
            return
        prompts = torch.unique_consecutive(live // self.width)
        if len(prompts) > 0.75 * len(self.lengths):
            return  # copying would gain too little
        number = torch.zeros_like(self.lengths)
        number[prompts] = torch.arange(len(prompts), device=live.device)
        for cache in self.layers.values():
            cache.prompt_keys = cache.prompt_keys[prompts]
            cache.prompt_values = cache.prompt_values[prompts]
            cache.keys = cache.keys[prompts]
            cache.values = cache.values[prompts]
        self.live = number[live // self.width] * self.width + live % self.width
        self.lengths, self._masks = self.lengths[prompts], {}

    def prompt_mask(self, window: int | None) -> Tensor | None:
        """Return an additive mask (P, 1, 1, 1, L) over the prompts' columns, or None where all count."""
        if window is not None and self.columns + self.age < window:
            window = None
        if window not in self._masks:
            column = torch.arange(self.columns, device=self.lengths.device)
            hidden = column >= self.lengths[:, None]
            if window is not None:
                hidden |= column <= self.lengths[:, None] + self.age - window
            mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self._masks[window] = mask[:, None, None, None] if bool(hidden.any()) else None
        return self._masks[window]


def padded(length: int) -> int:
    """Return the columns that a prompt of this length takes."""
    return -(-length // COLUMNS) * COLUMNS


def _key_dtype(keys: Tensor) -> torch.dtype:
    """Return the type that keys are kept in: half precision only where products of it come out in float32."""
    return keys.dtype if keys.device.type != "cpu" else torch.float32
