"""Fills a run folder with likelihoods of the rows' own answers, which IFD and SuperFiltering choose by."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin import keys
from adg_plugin.config import IN_MEMORY, ADGConfig
from adg_plugin.errors import NumericalError, OutOfMemoryError
from adg_plugin.progress import SamplingProgress
from adg_plugin.store import RunFolder, RunReader, staging
from adg_plugin.store.measures import Measures, measured
from adg_plugin.store.reader import PROMPTS
from adg_plugin.store.staging import row_digest

if TYPE_CHECKING:
    from adg_plugin.engines.likelihood import LikelihoodResult, LikelihoodRow
    from adg_plugin.engines.loading import Source

logger = logging.getLogger(__name__)

LikelihoodMethod = Literal["ifd", "superfiltering"]
MAX_TOKENS = 1024  # of prompt and answer together; both papers' models had at least as many positions
SMALL_MODEL = "gpt2"
NOT_MEASURED = "not_measured"

# Raise it when the same settings come to give other likelihoods.
_VERSION = 2
_FOUR_BIT = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")
_COLUMNS = ["id", "token_ids", "span_end", "instruction", "reference", "data", "dataset"]
_BATCH_ROWS = 256  # tokenised together
_WATCHED_ROWS = 256  # that many come in the order of their lengths: fewer may all be of a kind
_UNFIT_ROWS = 3  # without memory, and no more than that with a result


@dataclass(frozen=True, slots=True)
class LikelihoodTable:
    """The N prompts of a run folder, ascending by id, and what a model makes of their own answers."""

    ids: npt.NDArray[np.object_]  # (N,) str
    with_prompt: npt.NDArray[np.float64]  # (N,) mean of -log p over the answer's tokens, in nats; NaN with a reason
    alone: npt.NDArray[np.float64]  # (N,) the same over the same tokens without the prompt; NaN with a reason
    tokens: npt.NDArray[np.int32]  # (N,) that both means are over
    reasons: npt.NDArray[np.object_]  # (N,) str why there are no means, None where there are

    def __len__(self) -> int:
        return len(self.ids)


def measure(
    run: RunFolder,
    config: ADGConfig,
    source: Source,
    *,
    method: LikelihoodMethod,
    small_model: str = SMALL_MODEL,
    max_tokens: int = MAX_TOKENS,
    show: bool = True,
) -> dict[str, Any]:
    """Measure the prompts of a run folder that have no likelihoods, and return what it took.

    `ifd` asks the backbone, after the prompt as training renders it. `superfiltering` asks a small model, after the
    instruction, a line break, and the input and another where there is one; of a conversation, the instruction is its
    last user turn. Without the prompt, an answer follows what the prompt has after the instruction, such as the
    template's opening of an answer, for `ifd`, and what the tokenizer puts before any text (a BOS, or nothing) for
    `superfiltering`. The answer is the row's own, tokenised by itself without special tokens, EOS left out. Where
    prompt and answer have more than `max_tokens`, the answer's end is cut; a prompt that alone has as many is rejected.

    Args:
        run: the run folder, with a staged pool.
        config: settings of the backbone; the small model takes device and `trust_remote_code` of them.
        source: the backbone, loaded only if `ifd` has something to measure.
        method: what the likelihoods are for.
        small_model: folder or hub name for `superfiltering`.
        max_tokens: the most of prompt and answer together; less where the model has fewer positions.
        show: report progress on stderr.

    Returns:
        `rows` that had no likelihoods, `cut` answers among all; where there were any `seconds` and `tokens`
        predicted; where memory was short `left`, the reason of each row that is not stored, by id.

    Raises:
        ModelError: the model cannot be used.
        NumericalError: most rows give NaN or infinity.
        OutOfMemoryError: several rows in a row do not fit, each alone.
        StoreError: no pool is staged, or a file cannot be read or written; what is measured is kept.
    """
    asked = _asked(config, source, method, small_model, max_tokens)
    with Measures.open(run, method) as measures:
        for sentence in measures.damage:
            logger.warning("%s", sentence)
        total = pending = cut = 0
        for row in asked.rows(run):
            total += 1
            cut += len(row.prompt_ids) < asked.max_tokens < len(row.prompt_ids) + len(row.answer_ids)
            pending += row_digest(row.id, row.key) not in measures.completed
        if cut:
            logger.warning(
                "%s: of %d of %d answers the end is left out, so that prompt and answer have at most %d tokens",
                method,
                cut,
                total,
                asked.max_tokens,
            )
        took: dict[str, Any] = {"rows": pending, "cut": cut}
        if not pending:
            return took
        rows = (row for row in asked.rows(run) if row_digest(row.id, row.key) not in measures.completed)
        with SamplingProgress(total, total - pending, verb="scoring", show=show) as progress:
            for result in _watched(asked.results(rows), progress, took):
                measures.append(result)
    return took | {"seconds": progress.seconds, "tokens": progress.tokens}


def likelihoods_of(
    run: RunReader,
    config: ADGConfig,
    source: Source,
    *,
    method: LikelihoodMethod,
    small_model: str = SMALL_MODEL,
    max_tokens: int = MAX_TOKENS,
) -> LikelihoodTable:
    """Return the stored likelihoods of the current prompts; arguments as of `measure`, which finds them.

    Those of another model, other texts or other settings do not count: such a row's reason is `not_measured`.

    Raises:
        ModelError: the small model's tokenizer cannot be read.
        StoreError: no pool is staged, or a file is damaged.
    """
    asked = _asked(config, source, method, small_model, max_tokens)
    ids: list[str] = []
    wanted: list[bytes] = []
    for row in asked.rows(run):
        ids.append(row.id)
        wanted.append(row_digest(row.id, row.key))
    table = measured(run, method, wanted)
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    found = table.take(pa.array(by_id, pa.int64()))
    reasons = pc.if_else(pc.is_null(found["id"]), NOT_MEASURED, found["reason"])
    return LikelihoodTable(
        ids=np.array([ids[place] for place in by_id], dtype=object),
        with_prompt=found["with_prompt"].to_numpy(),
        alone=found["alone"].to_numpy(),
        tokens=pc.fill_null(found["tokens"], 0).to_numpy(),
        reasons=np.array(reasons.to_pylist(), dtype=object),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of which model."""

    source: Source
    config: ADGConfig
    method: LikelihoodMethod
    max_tokens: int
    recipe: bytes  # of all that the likelihoods depend on beside the row

    def rows(self, run: RunReader) -> Iterator[LikelihoodRow]:
        """Yield the staged prompts with their own answers, in the pool's order, some of the pool in memory at a time.

        Raises:
            StoreError: no pool is staged, or its file is damaged.
        """
        from adg_plugin.engines.likelihood import LikelihoodRow

        for group in staging.groups(run.path / PROMPTS, _COLUMNS):
            for start in range(0, len(group), _BATCH_ROWS):
                rows = group.slice(start, _BATCH_ROWS).to_pylist()
                answers = _tokens(self.source.tokenizer, [row["reference"] or "" for row in rows])
                for row, (prompt, before), answer in zip(rows, self._prompts(rows), answers, strict=True):
                    key = _key(self.recipe, prompt, before, answer)
                    yield LikelihoodRow(row["id"], key, prompt, answer, before)

    def _prompts(self, rows: list[dict[str, Any]]) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """Return each row's prompt (L,), and what stands before the answer alone (B,)."""
        leading = np.array(_leading(self.source.tokenizer), np.int32)
        if self.method == "ifd":
            prompts = [np.array(row["token_ids"], np.int32) for row in rows]
            opening = [ids[row["span_end"] :] for ids, row in zip(prompts, rows, strict=True)]
            return [(ids, after if len(after) else leading) for ids, after in zip(prompts, opening, strict=True)]
        texts = _tokens(self.source.tokenizer, [plain_prompt(row, self.config) for row in rows])
        return [(np.concatenate((leading, ids)), leading) for ids in texts]

    def results(self, rows: Iterator[LikelihoodRow]) -> Iterator[LikelihoodResult]:
        """Yield the result of each row, the model loaded for them."""
        from adg_plugin.engines.likelihood import Likelihoods

        yield from Likelihoods(self.source.load().model, max_tokens=self.max_tokens).run(rows)


def plain_prompt(row: dict[str, Any], config: ADGConfig) -> str:
    """Return a staged row's instruction and a line break, then its input and another where it has one.

    Args:
        row: columns instruction, data and dataset of the staged pool.
        config: names the column of the input.
    """
    number, asked = row["dataset"] or 0, str(row["instruction"])
    spec = config.datasets[number] if number < len(config.datasets) else IN_MEMORY
    given = json.loads(row["data"]).get(spec.field_input)
    # As staged, the input stands below the instruction, after an empty line.
    if isinstance(given, str) and given and asked.endswith(f"\n\n{given}"):
        return f"{asked.removesuffix(given)[:-2]}\n{given}\n"
    return f"{asked}\n"


def _asked(config: ADGConfig, source: Source, method: LikelihoodMethod, small_model: str, max_tokens: int) -> _Asked:
    if method == "superfiltering":
        from adg_plugin.engines.loading import Source

        # A revision, a type and a token of the backbone mean nothing to another model.
        changes: dict[str, Any] = {"model": small_model, "revision": None, "eos_token": None, "dtype": "auto"}
        config = config.updated(**changes, load_in_4bit=False)
        source = Source.configured(config)
    limit = max_tokens if source.positions is None else min(max_tokens, source.positions)
    names = ("dtype", "load_in_4bit", *(_FOUR_BIT if config.load_in_4bit else ()))
    recipe = {name: getattr(config, name) for name in names}
    recipe |= {"model": source.identity, "max_tokens": limit}
    return _Asked(source, config, method, limit, keys.digest({**recipe, "version": _VERSION}))


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


def _key(recipe: bytes, *parts: npt.NDArray[np.int32]) -> bytes:
    hashed = hashlib.blake2b(recipe, digest_size=16)
    for ids in parts:
        hashed.update(len(ids).to_bytes(8, "little"))  # where one ends and the next begins
        hashed.update(ids.astype("<i4").tobytes())
    return hashed.digest()


def _watched(
    results: Iterator[LikelihoodResult], progress: SamplingProgress, took: dict[str, Any]
) -> Iterator[LikelihoodResult]:
    """Yield what is to be stored, count everything, and stop where it is not the rows that are wrong."""
    from adg_plugin.engines.results import NON_FINITE, OUT_OF_MEMORY

    unfit = finite = bad = 0
    for result in results:
        progress.add(result.tokens, rejected=result.reason is not None)
        if result.reason == OUT_OF_MEMORY:  # not stored: the next run may have more
            took.setdefault("left", {})[result.id] = result.reason
            unfit += 1
        else:
            bad += result.reason == NON_FINITE
            finite += result.reason is None
            yield result
        if unfit >= _UNFIT_ROWS and unfit > finite:
            raise OutOfMemoryError(
                f"{unfit} rows do not fit into memory, each alone: free the device or lower max_prompt_tokens. What is "
                "measured is kept"
            )
        if finite + bad >= _WATCHED_ROWS:
            _refuse_not_finite(bad, finite + bad)
    _refuse_not_finite(bad, finite + bad)


def _refuse_not_finite(bad: int, rows: int) -> None:
    if bad > rows / 2:
        raise NumericalError(
            f"{bad} of {rows} rows gave NaN or infinity: set dtype to bfloat16 or float32 (float16 overflows in many "
            "models), or check the model's weights"
        )
