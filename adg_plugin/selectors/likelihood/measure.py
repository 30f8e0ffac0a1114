"""Fills a run folder with likelihoods of the reference responses, which IFD and SuperFiltering choose by."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.config.schema import IN_MEMORY, ADGConfig
from adg_plugin.engines.models.side_models import other_model, other_model_settings
from adg_plugin.selectors.measure import Advice, Measure, fill_measure, stored_measure
from adg_plugin.store import RunFolder, RunReader, keys, staging
from adg_plugin.store.measures import measure_schema
from adg_plugin.store.reader import PROMPTS

if TYPE_CHECKING:
    from adg_plugin.engines.judges.likelihood import Continuation, LikelihoodRow, Likelihoods
    from adg_plugin.engines.models.loading import Source

logger = logging.getLogger(__name__)

LikelihoodMethod = Literal["ifd", "superfiltering"]
SUPERFILTERING_TOKENS = 1024  # of prompt and answer together, at most
ADVICE: Mapping[LikelihoodMethod, Advice] = {
    "ifd": Advice(
        memory="free the device or lower max_prompt_tokens",
        numbers="set dtype to bfloat16 or float32 (float16 overflows in many models), or check the model's weights",
    ),
    "superfiltering": Advice(
        memory="free the device, use device: cpu, or a smaller small_model",
        numbers="check the weights of small_model, or name another one",
    ),
}
_SCHEMA = measure_schema(("with_prompt", pa.float64()), ("alone", pa.float64()))  # means of -log p, in nats

# Raise it when the same settings come to give other likelihoods.
_VERSION = 3
_COLUMNS = ["id", "token_ids", "span_end", "instruction", "reference", "data", "dataset"]
_BATCH_ROWS = 256  # tokenised together


@dataclass(frozen=True, slots=True)
class LikelihoodTable:
    """The N prompts of a run folder, ascending by id, and what a model makes of their reference responses."""

    ids: npt.NDArray[np.object_]  # (N,) str
    with_prompt: npt.NDArray[np.float64]  # (N,) mean of -log p over the answer's tokens, in nats; NaN with a reason
    alone: npt.NDArray[np.float64]  # (N,) the same over the same tokens without the prompt; NaN with a reason
    tokens: npt.NDArray[np.int32]  # (N,) that both means are over
    reasons: npt.NDArray[np.object_]  # (N,) str why there are no means, None where there are
    prompt_tokens: npt.NDArray[np.int32]  # (N,)
    max_tokens: int | None  # of prompt and answer together; None where the model sets no limit

    def __len__(self) -> int:
        return len(self.ids)


def measure(
    run: RunFolder,
    config: ADGConfig,
    source: Source,
    *,
    method: LikelihoodMethod,
    show: bool = True,
) -> dict[str, Any]:
    """Measure the prompts of a run folder that have no likelihoods, and return what it took.

    What stands before the answer, and what is cut, is in docs/method.md (`ifd`, `superfiltering`).

    Args:
        config: settings of the backbone; of them, the small model takes the device.
        source: the backbone, loaded only if `ifd` has something to measure.

    Returns:
        As `adg_plugin.selectors.measure.fill_measure`, and `cut`, the answers among all whose end is cut.

    Raises:
        ModelError: the model cannot be used.
    """
    judge = _judge(config, source, method)
    stats = fill_measure(run, _measure(method), judge, show=show)
    if judge.cut:
        logger.warning(
            "%s: of %d of %d answers the end is left out, so that prompt and answer have at most %d tokens",
            method,
            judge.cut,
            stats["total"],
            judge.max_tokens,
        )
    return stats | {"cut": judge.cut}


def likelihoods_of(run: RunReader, config: ADGConfig, source: Source, *, method: LikelihoodMethod) -> LikelihoodTable:
    """Return the stored likelihoods of the current prompts; arguments as of `measure`, which finds them.

    Those of another model, other texts or other settings do not count: such a row's reason is `not_measured`.

    Raises:
        ModelError: the small model's tokenizer cannot be read.
        StoreError: no pool is staged, or a file is damaged.
    """
    judge = _judge(config, source, method)
    prompt_tokens: list[int] = []

    def rows() -> Iterator[LikelihoodRow]:
        for row in judge.rows(run):
            prompt_tokens.append(len(row.prompt_ids))
            yield row

    table = stored_measure(run, _measure(method), judge, rows())
    table = table.append_column("prompt_tokens", pa.array(prompt_tokens, pa.int32())).sort_by("id")
    return LikelihoodTable(
        ids=table["id"].to_numpy(),
        with_prompt=table["with_prompt"].to_numpy(),
        alone=table["alone"].to_numpy(),
        tokens=pc.fill_null(table["tokens"], 0).to_numpy(),
        reasons=table["reason"].to_numpy(),
        prompt_tokens=table["prompt_tokens"].to_numpy(),
        max_tokens=judge.max_tokens,
    )


@dataclass(slots=True)
class _LikelihoodJudge:
    source: Source
    config: ADGConfig
    method: LikelihoodMethod
    max_tokens: int | None
    recipe: bytes  # of all that the likelihoods depend on, apart from the row
    cut: int = 0  # of the rows that were last gone through, those whose answer's end is left out

    def rows(self, run: RunReader) -> Iterator[LikelihoodRow]:
        """Yield the staged prompts with their reference responses, in the pool's order, a window at a time."""
        from adg_plugin.engines.judges.likelihood import LikelihoodRow

        self.cut = 0
        for group in staging.groups(run.path / PROMPTS, _COLUMNS):
            for start in range(0, len(group), _BATCH_ROWS):
                rows = group.slice(start, _BATCH_ROWS).to_pylist()
                answers = _tokens(self.source.tokenizer, [row["reference"] or "" for row in rows])
                for row, (prompt, before), answer in zip(rows, self._prompts(rows), answers, strict=True):
                    total = len(prompt) + len(answer)
                    self.cut += self.max_tokens is not None and len(prompt) < self.max_tokens < total
                    yield LikelihoodRow(row["id"], prompt, answer, before)

    def _prompts(self, rows: list[dict[str, Any]]) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """Return each row's prompt (L,), and what stands before the answer alone (B,)."""
        leading = np.array(_leading(self.source.tokenizer), np.int32)
        if self.method == "ifd":
            prompts = [np.array(row["token_ids"], np.int32) for row in rows]
            return [(ids, self._alone(ids, row["span_end"], leading)) for ids, row in zip(prompts, rows, strict=True)]
        texts = _tokens(self.source.tokenizer, [plain_prompt(row, self.config) for row in rows])
        return [(np.concatenate((leading, ids)), leading) for ids in texts]

    def _alone(self, prompt: npt.NDArray[np.int32], end: int, leading: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return what of a prompt (L,) stays before the answer alone: a BOS, and all after the user's words' end.

        A token that opens each turn is no BOS, though some tokenizers call it that.
        """
        after = prompt[end:]
        if not len(after):
            return leading
        bos = self.source.tokenizer.bos_token_id
        has_bos = bos is not None and prompt[0] == bos and not (prompt[1:] == bos).any()
        return np.concatenate((prompt[:1], after)) if has_bos else after

    def key(self, row: LikelihoodRow) -> bytes:
        """Return 16 bytes that stand for all that produces a row's likelihoods."""
        hashed = hashlib.blake2b(self.recipe, digest_size=16)
        for ids in (row.prompt_ids, row.before_ids, row.answer_ids):
            hashed.update(len(ids).to_bytes(8, "little"))  # where one ends and the next begins
            hashed.update(ids.astype("<i4").tobytes())
        return hashed.digest()

    def inputs(self, rows: Sequence[LikelihoodRow]) -> Iterator[Sequence[Continuation] | str]:
        """Yield each row's answer after its prompt and alone, or why there is nothing to compare."""
        from adg_plugin.engines.judges.likelihood import continuations

        return (continuations(row, self.max_tokens) for row in rows)

    def load(self) -> Likelihoods:
        """Return the model, in memory."""
        from adg_plugin.engines.judges.likelihood import Likelihoods

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


def _measure(method: LikelihoodMethod) -> Measure:
    return Measure(method, _SCHEMA, ADVICE[method])


def _judge(config: ADGConfig, source: Source, method: LikelihoodMethod) -> _LikelihoodJudge:
    limit: int | None = None
    if method == "superfiltering":
        source, config = other_model(config, "small_model"), other_model_settings(config, "small_model")
        limit = SUPERFILTERING_TOKENS
    if source.positions is not None:
        limit = source.positions if limit is None else min(limit, source.positions)
    names = ("dtype", "load_in_4bit", *(keys.FOUR_BIT if config.load_in_4bit else ()))
    recipe = {name: getattr(config, name) for name in names}
    recipe |= {"model": source.identity, "max_tokens": limit}
    return _LikelihoodJudge(source, config, method, limit, keys.digest({**recipe, "version": _VERSION}))


def _tokens(tokenizer: Any, texts: list[str]) -> list[npt.NDArray[np.int32]]:
    """Return each text's tokens (T,) without special ones; none of a text of white space."""
    if not texts:
        return []
    shown = [text if text.strip() else "" for text in texts]
    found = tokenizer(shown, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.array(ids, np.int32) for ids in found]


def _leading(tokenizer: Any) -> list[int]:
    """Return the BOS that the tokenizer puts before a plain text, if it does."""
    first = list(tokenizer("text")["input_ids"])[:1]
    return first if first == [tokenizer.bos_token_id] else []
