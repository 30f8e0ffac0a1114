"""`pooling: reference`: vectors made as the authors' released code makes them, of any engine's answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.config.scores import VectorSettings
from adg_plugin.engines.base import Engine
from adg_plugin.engines.encode.embed import REFERENCE_LAYERS, Weighted, embed, embed_reference, reference_sequence
from adg_plugin.engines.forward.hidden_states import last_layers
from adg_plugin.engines.forward.memory import is_out_of_memory, release_memory
from adg_plugin.engines.forward.results import NON_FINITE, OUT_OF_MEMORY, gram_matrix, rejection, row_result
from adg_plugin.store.records import Prompt, RowResult, Sampled

_ROWS = 64  # embedded together: enough to sort by length


class ReferencePooling:
    """Embeds the answers of an engine again, in a second forward pass; the prompt's vector stays that of the engine."""

    def __init__(self, engine: Engine, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._engine = engine
        self._model, self._tokenizer = model, tokenizer

    def run(self, rows: Iterable[Prompt], /) -> Iterator[RowResult]:
        """Yield one result per row, in the order in which they finish."""
        instructions: dict[str, str] = {}  # of the rows in flight

        def remembered() -> Iterator[Prompt]:
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


class ReferenceEncoder:
    """Embeds answers that are there already, empty ones included; prompts as every other encoder does."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: VectorSettings) -> None:
        self._model, self._tokenizer, self._config = model, tokenizer, config

    def run(self, rows: Iterable[Sampled], /) -> Iterator[RowResult]:
        """Yield one result per row, in their order."""
        source = iter(rows)
        while chunk := list(islice(source, _ROWS)):
            yield from self._results(chunk)

    def _results(self, rows: Sequence[Sampled]) -> Iterator[RowResult]:
        results = self._tried(rows)
        if results is None:  # out of the block in it, where the traceback still holds what filled the memory
            release_memory(self._model.device)
            results = [result for row in rows for result in self._results([row])]
        yield from results

    def _tried(self, rows: Sequence[Sampled]) -> list[RowResult] | None:
        """Return the results of rows, or None where they do not fit together."""
        try:
            return list(self._embedded(rows))
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
        return [rejection(rows[0].prompt, OUT_OF_MEMORY, rows[0].answers)] if len(rows) == 1 else None

    def _embedded(self, rows: Sequence[Sampled]) -> Iterator[RowResult]:
        prompts = embed(self._model, [_span(row.prompt) for row in rows], last_layers(self._config.layers))
        # Equal answers have one vector; rounding noise between their copies would count as directions.
        texts = [list(dict.fromkeys(answer.text for answer in row.answers)) for row in rows]
        pairs = [(row.instruction, text) for row, distinct in zip(rows, texts, strict=True) for text in distinct]
        found = embed(self._model, [reference_sequence(self._tokenizer, *pair) for pair in pairs], REFERENCE_LAYERS)
        of_rows = found.split([len(distinct) for distinct in texts])
        for row, prompt, distinct, vectors in zip(rows, prompts, texts, of_rows, strict=True):
            units = vectors[[distinct.index(answer.text) for answer in row.answers]]
            kept = units if self._config.keep_vectors else None
            yield row_result(row.prompt, row.answers, gram_matrix(units), prompt, kept)


def _span(prompt: Prompt) -> Weighted:
    weights = np.zeros(len(prompt), dtype=np.float32)
    weights[slice(*prompt.span)] = 1
    return Weighted(prompt.token_ids, weights)
