"""What IFD and SuperFiltering ask: how likely a model finds each reference response after its prompt, and alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adg_plugin.config.schema import IN_MEMORY, ADGConfig
from adg_plugin.data.cells import Reason
from adg_plugin.store import RunReader, keys, staging
from adg_plugin.store.names import PROMPTS

if TYPE_CHECKING:
    from adg_plugin.engines.judges.causal_lm import Continuation, LikelihoodRow, Likelihoods
    from adg_plugin.engines.models.loading import Source

_VERSION = 3  # raise it when the same settings come to give other likelihoods
_COLUMNS = ["id", "token_ids", "span_end", "instruction", "reference", "data", "dataset"]
_BATCH_ROWS = 256  # tokenised together

Tokens = npt.NDArray[np.int32]


@dataclass(slots=True)
class LikelihoodJudge:
    """Both likelihoods of a row's answer; what stands before it, and what is cut, is in docs/method.md."""

    source: Source
    config: ADGConfig
    plain: bool  # whether the prompt is the row's own words alone; else it is the staged one, as training renders it
    max_tokens: int | None  # of prompt and answer together; None where nothing limits them
    recipe: bytes  # of all that the likelihoods depend on, apart from the row
    cut: int = 0  # of the rows that were last gone through, those whose answer's end is left out
    prompt_tokens: list[int] = field(default_factory=list)  # of each of these rows

    @classmethod
    def configured(
        cls, config: ADGConfig, source: Source, *, plain: bool = False, limit: int | None = None
    ) -> LikelihoodJudge:
        """Return what is asked of a model under its settings; `limit` is of tokens, where the model may have more."""
        if source.positions is not None:
            limit = source.positions if limit is None else min(limit, source.positions)
        names = ("dtype", "load_in_4bit", *(keys.FOUR_BIT if config.load_in_4bit else ()))
        recipe = {name: getattr(config, name) for name in names}
        recipe |= {"model": source.identity, "max_tokens": limit, "version": _VERSION}
        return cls(source, config, plain, limit, keys.digest(recipe))

    def rows(self, run: RunReader) -> Iterator[LikelihoodRow]:
        """Yield the staged prompts with their reference responses, in the pool's order, a window at a time."""
        from adg_plugin.engines.judges.causal_lm import LikelihoodRow

        self.cut, self.prompt_tokens = 0, []
        for group in staging.groups(run.path / PROMPTS, _COLUMNS):
            for start in range(0, len(group), _BATCH_ROWS):
                rows = group.slice(start, _BATCH_ROWS).to_pylist()
                answers = self._tokens([row["reference"] or "" for row in rows])
                for row, (prompt, before), answer in zip(rows, self._prompts(rows), answers, strict=True):
                    total = len(prompt) + len(answer)
                    self.cut += self.max_tokens is not None and len(prompt) < self.max_tokens < total
                    self.prompt_tokens.append(len(prompt))
                    yield LikelihoodRow(row["id"], prompt, answer, before)

    def _prompts(self, rows: list[dict[str, Any]]) -> list[tuple[Tokens, Tokens]]:
        """Return each row's prompt (L,), and what stands before the answer alone (B,)."""
        tokenizer = self.source.tokenizer
        first = list(tokenizer("text")["input_ids"])[:1]
        leading = np.array(first if first == [tokenizer.bos_token_id] else [], np.int32)
        if self.plain:
            texts = self._tokens([plain_prompt(row, self.config) for row in rows])
            return [(np.concatenate((leading, ids)), leading) for ids in texts]
        prompts = [np.array(row["token_ids"], np.int32) for row in rows]
        return [(ids, self._alone(ids, row["span_end"], leading)) for ids, row in zip(prompts, rows, strict=True)]

    def _alone(self, prompt: Tokens, end: int, leading: Tokens) -> Tokens:
        """Return what of a prompt (L,) stays before the answer alone: a BOS, and all after the user's words' end.

        A token that opens each turn is no BOS, though some tokenizers call it that.
        """
        after = prompt[end:]
        if not len(after):
            return leading
        bos = self.source.tokenizer.bos_token_id
        has_bos = bos is not None and prompt[0] == bos and not (prompt[1:] == bos).any()
        return np.concatenate((prompt[:1], after)) if has_bos else after

    def _tokens(self, texts: list[str]) -> list[Tokens]:
        """Return each text's tokens (T,) without special ones; none of a text of white space."""
        shown = [text if text.strip() else "" for text in texts]
        found = self.source.tokenizer(shown, add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
        return [np.array(ids, np.int32) for ids in found]

    def key(self, row: LikelihoodRow) -> bytes:
        """Return 16 bytes that stand for all that produces a row's likelihoods."""
        hashed = hashlib.blake2b(self.recipe, digest_size=16)
        for ids in (row.prompt_ids, row.before_ids, row.answer_ids):
            hashed.update(len(ids).to_bytes(8, "little"))  # where one ends and the next begins
            hashed.update(ids.astype("<i4").tobytes())
        return hashed.digest()

    def inputs(self, rows: Sequence[LikelihoodRow]) -> Iterator[Sequence[Continuation] | str]:
        """Yield each row's answer after its prompt and alone, or why there is nothing to compare."""
        from adg_plugin.engines.judges.causal_lm import continuations

        known = self.source.vocabulary
        for row in rows:
            tokens = np.concatenate((row.prompt_ids, row.answer_ids, row.before_ids))
            unknown = known is not None and tokens.max(initial=0) >= known
            yield Reason.UNKNOWN_TOKEN.value if unknown else continuations(row, self.max_tokens)

    def load(self) -> Likelihoods:
        """Return the model, in memory."""
        from adg_plugin.engines.judges.causal_lm import Likelihoods

        return Likelihoods(self.source.load().model)


def plain_prompt(row: dict[str, Any], config: ADGConfig) -> str:
    """Return a staged row's instruction and a line break, then its input and another where it has one.

    Args:
        row: columns instruction, data and dataset of the staged pool.
    """
    number, asked = row["dataset"] or 0, str(row["instruction"])
    spec = config.datasets[number] if number < len(config.datasets) else IN_MEMORY
    given = json.loads(row["data"]).get(spec.field_input)
    # As staged, the input stands below the instruction, after an empty line.
    if isinstance(given, str) and given and asked.endswith(f"\n\n{given}"):
        return f"{asked.removesuffix(given)[:-2]}\n{given}\n"
    return f"{asked}\n"
