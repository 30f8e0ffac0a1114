"""Tokens per second of the one-pass engine against the released pipeline's method, in turns in one run.

    python benchmarks/bench_engine.py [--prompts 64] [--max-new-tokens 64] [--threads 1]

Demo model in bfloat16, K=5, T=1.4, top-k 50, p=0.9. The other side does what the authors' released code does, in its
three passes: `generate` in batches of 32 prompts with five sequences each (top-k 50 is its default); every instruction
embedded, one at a time, without the head; every instruction + answer embedded, one at a time, logits and all. It gets
whole prompts, which the released code cuts at 80 tokens. First one-pass vectors are compared with a plain forward over
the same answers. The last line is JSON:

    ratio            tokens/s of ours / theirs
    gemm_fraction    our tokens/s / what the model's matrix products alone allow at our batch size
    vector_overhead  our time with vectors / our time sampling alone - 1
    sampler_share    of our time, spent on drawing tokens from logits

Where vLLM is installed (`.venv-vllm/bin/python benchmarks/bench_engine.py`), it draws the same rows in the same rounds:

    vllm_tokens_per_s   drawing alone
    vllm_ratio          tokens/s of drawing and embedding apart / of ours in one pass
    encoder_tokens_per_s  answer tokens embedded, each prompt once for its K answers
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from adg_plugin.config.schema import ADGConfig, DatasetSpec
from adg_plugin.data.prompts import PromptRenderer, Rendered
from adg_plugin.data.rows import Row, unique_rows
from adg_plugin.data.sources import iter_records
from adg_plugin.demo import pool_paths
from adg_plugin.engines.encode.embed import answer_sequence, embed
from adg_plugin.engines.encode.shared_prompt import SharedPromptEncoder
from adg_plugin.engines.forward.memory import Capacity
from adg_plugin.engines.forward.sampler import TokenSampler
from adg_plugin.engines.models.loading import Backbone, load_backbone
from adg_plugin.engines.one_pass.engine import OnePassEngine
from adg_plugin.store.records import Prompt, RowResult, Sampled

SHARED_POOL = Path(__file__).parents[2] / "shared" / "data" / "pool.jsonl"
THEIR_BATCH = 32


def read_prompts(backbone: Backbone, count: int) -> list[Prompt]:
    pool = SHARED_POOL if SHARED_POOL.exists() else pool_paths()[-1]
    renderer = PromptRenderer(backbone.tokenizer, "auto", None)
    rows = (r for r in unique_rows(iter_records([DatasetSpec(path=str(pool))])) if isinstance(r, Row))
    prompts = (r for _, r in renderer.render_many(rows) if isinstance(r, Rendered))
    decode = backbone.tokenizer.decode
    return [
        Prompt(r.id, r.token_ids, r.span, instruction=decode(r.token_ids[slice(*r.span)]))
        for r, _ in zip(prompts, range(count), strict=False)
    ]


def released_method(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ADGConfig, eos: int,
                    prompts: Sequence[Prompt]) -> int:  # fmt: skip
    """Return the tokens sampled; vectors are made and dropped."""
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=config.temperature, top_p=config.top_p, top_k=50,
        max_new_tokens=config.max_new_tokens, eos_token_id=eos, pad_token_id=eos,
    )  # fmt: skip
    sampled, texts = 0, []
    for start in range(0, len(prompts), THEIR_BATCH):
        batch = prompts[start : start + THEIR_BATCH]
        longest = max(len(p) for p in batch)
        ids = torch.full((len(batch), longest), eos)
        mask = torch.zeros_like(ids)
        for i, p in enumerate(batch):
            ids[i, longest - len(p) :] = torch.from_numpy(p.token_ids)
            mask[i, longest - len(p) :] = 1
        output = model.generate(input_ids=ids, attention_mask=mask, num_return_sequences=config.num_samples)
        for i, row in enumerate(output[:, longest:]):
            ends = (row == eos).nonzero()
            answer = row[: int(ends[0])] if len(ends) else row
            sampled += len(answer)
            texts.append(f"{batch[i // config.num_samples].instruction} {tokenizer.decode(answer).strip()}")
    for prompt in prompts:
        embed_text(model.base_model, tokenizer, prompt.instruction)
    for text in texts:
        embed_text(model, tokenizer, text)
    return sampled


def embed_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", truncation=True, max_length=1024).input_ids
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    return torch.stack(states[-4:-1]).mean(0)[0].float().mean(0)


def gemm_tokens_per_s(model: PreTrainedModel, rows: int) -> float:
    """Return the tokens/s of the linear layers and the head alone, at a batch of `rows`."""
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {m.in_features: torch.randn(rows, m.in_features).to(model.dtype) for m in layers}
    times = []
    for _ in range(7):
        began = time.perf_counter()
        for layer in layers:
            layer(inputs[layer.in_features])
        times.append(time.perf_counter() - began)
    return rows / median(times)


def check_same_vectors(model: PreTrainedModel, prompts: Sequence[Prompt], results: Sequence[RowResult]) -> float:
    """Return the largest difference between one-pass Gram matrices and those of encoding the answers again."""
    by_id = {p.id: p for p in prompts}
    gaps = []
    for result in results[:8]:
        sequences = [answer_sequence(by_id[result.id].token_ids, a.token_ids) for a in result.answers]
        units = embed(model, sequences, (-4, -3, -2, -1))
        gaps.append(float(np.abs((units @ units.T).numpy() - result.gram).max()))
    return max(gaps)


def vllm_sides(
    config: ADGConfig, backbone: Backbone, prompts: Sequence[Prompt]
) -> tuple[Callable[[], int], Callable[[], int]] | None:
    """Return what draws answers with vLLM and what embeds them, each returning the answers' tokens; None without it."""
    if find_spec("vllm") is None:
        return None
    from adg_plugin.engines.vllm.in_process import VLLMSampler

    options = {"kv_cache_memory_bytes": 2 << 30, "max_num_seqs": 160}
    config = config.updated(engine="vllm", vllm_options=options)
    sampler = VLLMSampler(config, backbone.tokenizer, backbone.eos_ids, dtype="bfloat16")
    encoder = SharedPromptEncoder(backbone.model, config)
    by_id, rows = {p.id: p for p in prompts}, []

    def draw() -> int:
        rows[:] = [Sampled(by_id[r.id], r.answers) for r in sampler.run(prompts) if r.reason is None]
        return sum(len(a.token_ids) for r in rows for a in r.answers)

    def embed() -> int:
        return sum(r.num_tokens for r in encoder.run(rows))

    return draw, embed


class TimedSampler:
    """A sampler that counts the seconds it takes."""

    def __init__(self, sampler: TokenSampler) -> None:
        self._sampler, self.seconds = sampler, 0.0

    def draw(self, *arguments: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        tokens = self._sampler.draw(*arguments)
        self.seconds += time.perf_counter() - began
        return tokens


def timed(run: Callable[[], int]) -> tuple[float, int]:
    began = time.perf_counter()
    tokens = run()
    return time.perf_counter() - began, tokens


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="of ours with and without vectors, around theirs")
    parser.add_argument("--threads", type=int, help="of torch; default its own")
    parser.add_argument("--skip-theirs", action="store_true", help="only ours, for tuning")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    config = ADGConfig.parse({"model": "demo", "dtype": "bfloat16", "max_new_tokens": args.max_new_tokens})
    backbone = load_backbone(config)
    model, tokenizer, eos = backbone.model, backbone.tokenizer, backbone.eos_ids
    prompts = sorted(read_prompts(backbone, args.prompts), key=len)

    drawing: list[float] = []

    def ours(vectors: bool, keep: list[RowResult] | None = None) -> int:
        engine = OnePassEngine(model, tokenizer, config, eos, vectors=vectors)
        engine._sampler = TimedSampler(engine._sampler)  # type: ignore[assignment]
        results = list(engine.run(prompts))
        drawing.append(engine._sampler.seconds)  # type: ignore[attr-defined]
        if keep is not None:
            keep.extend(results)
        return sum(r.num_tokens for r in results)

    results: list[RowResult] = []
    ours(True, results)  # warms up
    gap = check_same_vectors(model, prompts, results)
    print(f"largest difference of Gram entries, one pass against encoding again: {gap:.1e}")
    rows = min(Capacity.of(model, config).rows, args.prompts * config.num_samples)
    full, alone, theirs, gemm, drawn, embedded, shares = [], [], [], [], [], [], []
    by_vllm = vllm_sides(config, backbone, prompts)
    for turn in range(args.rounds):
        gemm.append(gemm_tokens_per_s(model, rows))
        full.append(timed(lambda: ours(True)))
        shares.append(drawing[-1] / full[-1][0])
        alone.append(timed(lambda: ours(False)))
        if turn == 0 and not args.skip_theirs:
            theirs.append(timed(lambda: released_method(model, tokenizer, config, eos[0], prompts)))
        if by_vllm is not None:
            drawn.append(timed(by_vllm[0]))
            embedded.append(timed(by_vllm[1]))
        print(f"round {turn + 1}: ours {full[-1][1] / full[-1][0]:.0f} tokens/s, sampling alone "
              f"{alone[-1][1] / alone[-1][0]:.0f}, products alone {gemm[-1]:.0f}")  # fmt: skip
    speed = median(n / s for s, n in full)
    report = {
        "prompts": args.prompts, "max_new_tokens": args.max_new_tokens, "rows": rows,
        "prompt_tokens": sum(len(p) for p in prompts), "tokens_per_s": round(speed, 1),
        "gemm_tokens_per_s": round(median(gemm), 1), "gemm_fraction": round(speed / median(gemm), 3),
        "vector_overhead": round(median(s / n * m / t for (s, n), (t, m) in zip(full, alone, strict=True)) - 1, 3),
        "sampler_share": round(median(shares), 3), "threads": torch.get_num_threads(),
    }  # fmt: skip
    if theirs:
        seconds, tokens = theirs[0]
        report |= {
            "theirs_tokens_per_s": round(tokens / seconds, 1),
            "ratio": round(speed * seconds / tokens, 2),
            "ratio_range": [round(f(n / s for s, n in full) * seconds / tokens, 2) for f in (min, max)],
        }  # fmt: skip
    if by_vllm is not None:
        apart = [n / (s + t) for (s, n), (t, _) in zip(drawn, embedded, strict=True)]
        report |= {
            "vllm_tokens_per_s": round(median(n / s for s, n in drawn), 1),
            "encoder_tokens_per_s": round(median(n / s for s, n in embedded), 1),
            "vllm_ratio": round(median(a * s / n for a, (s, n) in zip(apart, full, strict=True)), 2),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
