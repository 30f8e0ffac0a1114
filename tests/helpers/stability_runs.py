"""Finished runs over made-up answers whose spread is known."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from adg_plugin.scoring.score import choose_rows
from adg_plugin.store import RunFolder, StagedRow
from adg_plugin.store.records import Answer, Prompt, RowResult
from adg_plugin.tools.stability import print_stability

ROWS, WIDTH, BUDGET = 500, 24, 100
IDS = np.array([f"r{n:04d}" for n in range(ROWS)], dtype=object)


def drawn(seed, samples, difference, rows=ROWS):
    """Return Gram matrices (N, K, K) of rows whose answers scatter by `difference` more or less; draws by `seed`."""
    of_rows = np.random.default_rng(0)
    centre = of_rows.standard_normal((rows, 1, WIDTH))
    centre *= np.sqrt(WIDTH) / np.linalg.norm(centre, axis=2, keepdims=True)  # else their lengths would tell rows apart
    spread = np.exp(difference * of_rows.standard_normal((rows, 1, 1)))
    shape = np.exp(difference * of_rows.standard_normal((rows, 1, WIDTH)))
    noise = np.random.default_rng(seed).standard_normal((rows, samples, WIDTH))
    vectors = 3 * centre + spread * shape * noise
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors @ vectors.transpose(0, 2, 1)).astype(np.float32)


def prompt_vectors(rows):
    vectors = np.random.default_rng(1).standard_normal((rows, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def write(folder, grams, config):
    """Write a finished run folder and return the chosen ids; `grams` may be of different K."""
    with RunFolder.open(folder) as run:
        prompts = [Prompt(f"r{n:04d}", np.arange(3, dtype=np.int32), (0, 2), bytes(16)) for n in range(len(grams))]
        run.stage_prompts([StagedRow(p, "text", "", "{}", "here") for p in prompts], digest="d")
        for prompt, gram, vector in zip(prompts, grams, prompt_vectors(len(grams)), strict=True):
            answers = tuple(Answer(np.arange(2, dtype=np.int32), "a", "eos") for _ in gram)
            run.append(RowResult(prompt.id, prompt.key, answers, gram, vector))
        scored = choose_rows(run.geometry(), config, len(grams))
        run.write_scores(scored.table())
        run.write_selected(scored.chosen_ids())
        run.write_manifest({"config": config.model_dump(mode="json")})
    return set(scored.chosen_ids())


def printed(about, width=200):
    out = io.StringIO()
    print_stability(about, Console(file=out, width=width))
    return " ".join(out.getvalue().split())
