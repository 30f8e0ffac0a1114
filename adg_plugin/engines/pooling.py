"""`pooling: reference`: the answers of any engine, with vectors made as the authors' released code makes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.engines.base import Prompt, RowResult, Sampled
from adg_plugin.engines.embed import embed_reference
from adg_plugin.engines.memory import is_out_of_memory, release_memory
from adg_plugin.engines.results import NON_FINITE, OUT_OF_MEMORY, gram_matrix

T = TypeVar("T", Prompt, Sampled)
T_contra = TypeVar("T_contra", Prompt, Sampled, contravariant=True)


class _Runs(Protocol[T_contra]):
    """An engine or an encoder."""

    def run(self, rows: Iterable[T_contra], /) -> Iterator[RowResult]: ...


class ReferencePooling(Generic[T]):
    """Embeds each row's answers again, in a second forward pass; the prompt's vector stays that of the engine."""

    def __init__(
        self,
        engine: _Runs[T],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._engine: _Runs[T] = engine
        self._model, self._tokenizer = model, tokenizer

    def run(self, rows: Iterable[T], /) -> Iterator[RowResult]:
        """Yield one result per row, in the order in which they finish."""
        instructions: dict[str, str] = {}  # of the rows in flight

        def remembered() -> Iterator[T]:
            for row in rows:
                instructions[row.id] = row.instruction
                yield row

        for result in self._engine.run(remembered()):
            yield self._pooled(result, instructions.pop(result.id))

    def _pooled(self, result: RowResult, instruction: str) -> RowResult:
        if result.gram is None:
            return result
        try:
            vectors = embed_reference(self._model, self._tokenizer, instruction, [a.text for a in result.answers])
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
            release_memory(self._model.device)
            return replace(result, gram=None, prompt_vector=None, vectors=None, reason=OUT_OF_MEMORY)
        gram = gram_matrix(vectors)
        if not np.isfinite(gram).all():
            return replace(result, gram=None, prompt_vector=None, vectors=None, reason=NON_FINITE)
        kept = None if result.vectors is None else vectors.numpy().astype(np.float16)
        return replace(result, gram=gram, vectors=kept)
