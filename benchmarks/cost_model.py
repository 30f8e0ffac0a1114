"""What a selection costs in tokens, arithmetic, bytes and hours, by formula: the tables of docs/scale.md.

    python benchmarks/cost_model.py [--prompt-tokens 100] [--answer-tokens 180] [--num-samples 5]

Nothing here is measured on an accelerator. A forward pass over a token takes two operations per weight; what an
accelerator reaches of its peak is an assumption, stated below, and every hour in the table is in inverse proportion to
it. `adg select` on a sample of the pool says how far off they are for one's own machine.
"""

from __future__ import annotations

import argparse

PEAK = 989e12  # dense bfloat16 operations per second of an H100
DECODING, ENCODING = 0.2, 0.4  # shares of the peak: assumed
BACKBONES = {"1B": (1.2e9, 2048), "8B": (8.0e9, 4096)}  # weights, width
POOLS = {"52K": 52_002, "1M": 1_000_000, "100M": 100_000_000}
ACCELERATORS = (1, 8, 64)


def row_operations(weights: float, prompt: int, answer: int, samples: int) -> float:
    """Return the operations of one pass over a row: its prompt once, and all of its answers."""
    return 2 * weights * (prompt + samples * answer)


def row_bytes(width: int, prompt: int, answer: int, samples: int) -> dict[str, float]:
    """Return what the run folder keeps of a row: four characters and 1.6 packed bytes per token id, half of a text."""
    return {
        "prompts": prompt * (1.6 + 4 * 0.5) + 2 * answer * 4 * 0.5,  # rendered, original row, reference answer
        "answers": samples * answer * (1.6 + 4 * 0.5),
        "geometry": samples**2 * 4 + 2 * width,  # Gram matrix in float32, prompt vector in float16
    }


def hours(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--answer-tokens", type=int, default=180, help="mean, with a limit of 256")
    parser.add_argument("--num-samples", type=int, default=5)
    args = parser.parse_args()
    shape = args.prompt_tokens, args.answer_tokens, args.num_samples
    print("| backbone | operations per row | decoded tokens per row | kept per row | rows/s (one pass; apart) |")
    print("|---|---|---|---|---|")
    speeds = {}
    for name, (weights, width) in BACKBONES.items():
        operations, kept = row_operations(weights, *shape), row_bytes(width, *shape)
        drawn = operations / (PEAK * DECODING)
        speeds[name] = 1 / drawn, 1 / (drawn + operations / (PEAK * ENCODING))
        print(
            f"| {name} | {operations / 1e12:.1f} T (twice where vectors are made apart) | "
            f"{args.num_samples * args.answer_tokens} | {sum(kept.values()) / 1e3:.1f} kB, of which geometry "
            f"{kept['geometry'] / 1e3:.1f} | {speeds[name][0]:.0f}; {speeds[name][1]:.0f} |"
        )
    print()
    print("| pool | backbone | decoded tokens | run folder | " + " | ".join(f"{n} H100" for n in ACCELERATORS) + " |")
    print("|---|---|---|---|" + "---|" * len(ACCELERATORS))
    for pool, rows in POOLS.items():
        for name, (_, width) in BACKBONES.items():
            kept = sum(row_bytes(width, *shape).values()) * rows
            times = " | ".join(hours(rows / speeds[name][0] / n) for n in ACCELERATORS)
            print(f"| {pool} | {name} | {rows * shape[1] * shape[2] / 1e9:,.2f} G | {kept / 1e9:,.1f} GB | {times} |")


if __name__ == "__main__":
    main()
