"""Finished runs over made-up answers, and what a sweep over them should find."""

from __future__ import annotations

import hashlib

import numpy as np
import scipy.stats
import typer

from adg_plugin.config.schema import ADGConfig
from adg_plugin.scoring.score import choose_rows
from adg_plugin.store import RunFolder, StagedRow
from adg_plugin.store.records import Answer, Prompt, RowResult
from adg_plugin.tools.sweep.cli import sweep

ROWS, K, BUDGET = 200, 6, 40


CONFIG = ADGConfig(budget=BUDGET, bins=7, num_samples=K, seed=3)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def answer_lengths(row):
    return [1 + (row * 7 + k * 3) % 11 for k in range(K)]


def drawn(rows=ROWS):
    """Return (N, K, K) Gram matrices of rows that scatter differently, and differently by answer."""
    rng = np.random.default_rng(5)
    shape = np.exp(0.5 * rng.standard_normal((rows, 1, 12)))
    vectors = unit(2 * rng.standard_normal((rows, 1, 12)) + shape * rng.standard_normal((rows, K, 12)))
    return (vectors @ vectors.transpose(0, 2, 1)).astype(np.float32)


def prompt_vectors(rows):
    return unit(np.random.default_rng(6).standard_normal((rows, 8))).astype(np.float16)


def write(folder, grams, config=CONFIG, asked=lambda n: ""):
    """Write a finished run folder; the rows are staged in another order than that of their ids."""
    with RunFolder.open(folder) as run:
        order = np.random.default_rng(7).permutation(len(grams))
        prompts = [Prompt(f"r{n:04d}", np.arange(3, dtype=np.int32), (0, 2), bytes(16), asked(n)) for n in order]
        run.stage_prompts([StagedRow(p, "text", "", "{}", "here") for p in prompts], digest="d")
        vectors = prompt_vectors(len(grams))
        for n, prompt in zip(order, prompts, strict=True):
            lengths = answer_lengths(n)[: len(grams[n])]
            answers = tuple(Answer(np.arange(length, dtype=np.int32), "a", "eos") for length in lengths)
            run.append(RowResult(prompt.id, prompt.key, answers, grams[n], vectors[n]))
        scored = choose_rows(run.geometry(), config, len(grams))
        run.write_scores(scored.table())
        run.write_selected(scored.chosen_ids())
        run.write_manifest({"config": config.model_dump(mode="json")})
    return scored


def lines(about):
    return {line.name: line.found for line in about.lines}


def transcribed(gram, k=None):
    """Return D and I of one row by their definition."""
    g = np.asarray(gram, np.float64)[:k, :k]
    j = np.eye(len(g)) - 1 / len(g)
    centred = j @ g @ j
    trace = np.trace(centred)
    return trace / len(g), 1 - np.linalg.eigvalsh(centred)[-1] / trace


def tree(path):
    return {file: hashlib.sha256(file.read_bytes()).digest() for file in sorted(path.rglob("*")) if file.is_file()}


# The figures


def ranks(values):
    return (scipy.stats.rankdata(values) - 1) / (len(values) - 1)


# The command


def invoke(*arguments):
    app = typer.Typer()
    app.command()(sweep)
    try:
        app([str(argument) for argument in arguments], prog_name="adg", standalone_mode=True)
    except SystemExit as ended:
        return ended.code
    return 0


# Answers embedded again


SETTINGS = {"budget": 10, "bins": 3, "num_samples": 4, "seed": 2}
