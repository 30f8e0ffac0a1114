"""Does the choice of rows matter? Each method chooses as many, and the same LoRA is trained on them and evaluated.

    python benchmarks/downstream.py WORK --pool pool.jsonl --extra other.jsonl --seeds 3    resumable: run it again
    python benchmarks/downstream.py WORK --choices benchmarks/results/downstream.jsonl     trained and evaluated again
    python benchmarks/downstream.py WORK --table                                           the table alone
    python benchmarks/downstream.py --smoke                                                minutes, shipped data only

The pool is split once: `--held-out` rows for the loss, `--rows` to choose from. A seed is that of the method's own
draws (ADG's answers and bins, the rows of random) and that of the training; methods are compared with random seed by
seed and evaluation row by evaluation row. WORK holds the split, a run folder per seed, adapters and results.jsonl.
Progress goes to stderr; the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from downstream_runs import Training, answer_loss, load, read_rows, tokenizer_of, train
from downstream_table import compared, print_table
from downstream_tasks import ask

from adg_plugin import select
from adg_plugin.config import ADGConfig
from adg_plugin.demo import pool_paths

METHODS: dict[str, dict[str, Any]] = {
    "adg-raw": {"score": "raw"},
    "adg-rank": {"score": "rank"},
    "adg-residual": {"score": "residual"},
    "dispersion": {"weight": 0.0},
    "anisotropy": {"weight": 1.0},
    "random": {"method": "random"},
    "longest": {"method": "longest"},
    "ifd": {"method": "ifd"},
    "superfiltering": {"method": "superfiltering"},
    "zip": {"method": "zip"},
}
SEEDLESS = ("longest", "ifd", "superfiltering", "zip")  # choose the same rows under every seed
SMOKE = ("random", "longest", "ifd", "zip", "adg-raw")
UNTRAINED = "untrained"
RESULTS, QUESTIONS = "results.jsonl", "questions.jsonl"


@dataclass(frozen=True)
class Plan:
    """What is compared. Runs of another plan are never mixed with these.

    Attributes:
        pool: digest of the pool's file, and of the file of other rows to evaluate on.
    """

    pool: str
    rows: int
    held_out: int
    row_tokens: int
    budget: int
    answer_tokens: int
    small_model: str
    training: Training


def split(work: Path, plan: Plan, pool: Path, extra: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Write the pool to choose from, and return the rows to evaluate on: short ones with an answer, at random."""
    tokenizer = tokenizer_of(plan.training.model)

    def length(row: dict[str, Any]) -> int:
        prompt = f"{row['instruction']}\n{row.get('input', '')}"
        return sum(len(tokenizer(text).input_ids) for text in (prompt, row["output"]))

    rows = [row for row in read_rows(pool) if row["output"].strip() and length(row) <= plan.row_tokens]
    rows.sort(key=lambda row: str(row["id"]))
    random.Random(0).shuffle(rows)
    chosen_from = rows[plan.held_out : plan.held_out + plan.rows]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen_from)
    path = work / "pool.jsonl"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    found = {"held_out": rows[: plan.held_out]}
    if extra is not None:
        found[extra.stem] = read_rows(extra)
    return found


def choose(work: Path, plan: Plan, method: str, seed: int) -> list[dict[str, Any]]:
    """Return the rows that a method chooses, from one run folder per seed that changes something."""
    seed = 0 if method in SEEDLESS else seed
    settings = {
        **({"small_model": plan.small_model} if method == "superfiltering" else {}),
        "model": plan.training.model,
        "datasets": [str(work / "pool.jsonl")],
        "budget": plan.budget,
        "max_new_tokens": plan.answer_tokens,
        "seed": seed,
        **METHODS[method],
    }
    return list(select(config=ADGConfig.parse(settings), output_dir=work / f"run-{seed}").rows())


def read_choices(path: Path, methods: Sequence[str]) -> dict[tuple[str, int], set[str]]:
    """Return the ids that each of the methods chose under each seed, from the file of an earlier run."""
    lines = read_rows(path)
    return {(line["method"], line["seed"]): set(line["ids"]) for line in lines if line["method"] in methods}


@dataclass(frozen=True)
class Bench:
    """Where everything of a plan is; each stage of each run is one line of a file, so that nothing is done twice.

    Attributes:
        evaluated: rows for the loss, by name.
        choices: ids by method and seed that are not to be chosen anew.
        questions: folder with BIG-Bench-Hard and GSM8K; None asks none.
    """

    work: Path
    plan: Plan
    evaluated: dict[str, list[dict[str, Any]]]
    questions: Path | None
    questions_per_task: int
    choices: dict[tuple[str, int], set[str]]

    def chosen(self, method: str, seed: int) -> list[dict[str, Any]]:
        """Return the rows that a method chooses, or chose already.

        Raises:
            SystemExit: a row that it chose is not in the pool.
        """
        ids = self.choices.get((method, seed))
        if ids is None:
            return choose(self.work, self.plan, method, seed)
        rows = [row for row in read_rows(self.work / "pool.jsonl") if str(row["id"]) in ids]
        if missing := ids - {str(row["id"]) for row in rows}:
            sys.exit(f"error: --choices: row {min(missing)!r} of {method} is not in the pool: give the same --pool")
        return rows

    def results(self, name: str) -> dict[tuple[str, int], dict[str, Any]]:
        """Return the lines of this plan in a file, by method and seed."""
        path = self.work / name
        found = read_rows(path) if path.is_file() else []
        return {(line["method"], line["seed"]): line for line in found if line["plan"] == asdict(self.plan)}

    def add(self, name: str, method: str, seed: int, result: dict[str, Any]) -> None:
        line = {"method": method, "seed": seed, "plan": asdict(self.plan), **result}
        with (self.work / name).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")

    def run(self, method: str, seed: int) -> None:
        """Choose, train, and evaluate the loss, then the questions, as far as that is not done."""
        trained = self.results(RESULTS).get((method, seed))
        asked = self.questions is None or (method, seed) in self.results(QUESTIONS)
        if trained is not None and asked:
            return
        result: dict[str, Any] = {}
        adapter = None if method == UNTRAINED else self.work / "adapters" / f"{method}-{seed}"
        if adapter is not None and (trained is None or not adapter.is_dir()):
            began = time.perf_counter()
            rows = self.chosen(method, seed)
            result["choosing_s"] = time.perf_counter() - began
            result["ids"] = sorted(str(row["id"]) for row in rows)
            result["training_s"] = train(rows, self.plan.training, seed, adapter)
        gc.collect()  # PEFT's models hold themselves
        model = load(self.plan.training, adapter)
        if trained is None:
            result["loss"] = {}
            for name, of in self.evaluated.items():
                loss = answer_loss(model, of, self.plan.training)
                result["loss"][name] = {"nats": [round(value, 3) for value in loss.nats], "tokens": loss.tokens}
            self.add(RESULTS, method, seed, result)
        if not asked and self.questions is not None:
            folder = self.work / "tasks"
            answers = ask(model, self.plan.training, self.questions, folder, self.questions_per_task)
            self.add(QUESTIONS, method, seed, answers)

    def everything(self) -> list[dict[str, Any]]:
        """Return all lines of both files."""
        return [line for name in (RESULTS, QUESTIONS) for line in self.results(name).values()]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("--pool", default="../shared/data/pool.jsonl")
    parser.add_argument("--extra", default="../shared/eval/user_oriented.jsonl", help="more rows to evaluate on")
    parser.add_argument("--questions", default="../shared/eval", help="folder with bbh/ and gsm8k_test.jsonl; '': none")
    parser.add_argument("--questions-per-task", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--row-tokens", type=int, default=256, help="longer rows are left out")
    parser.add_argument("--budget", type=int, default=96)
    parser.add_argument("--answer-tokens", type=int, default=48)
    parser.add_argument("--small-model", default="demo", help="of superfiltering")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", help="default: all; with --smoke, five of them")
    parser.add_argument("--choices", type=Path, metavar="FILE", help="results to take the chosen rows from")
    parser.add_argument(
        "--choose", default="", metavar="METHODS", help="with --choices: these choose anew all the same"
    )
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument("--smoke", action="store_true", help="a few rows of the package's own demo pool")
    return parser.parse_args(arguments)


def plan_of(args: argparse.Namespace, files: Sequence[Path]) -> Plan:
    digest = hashlib.blake2b(b"".join(path.read_bytes() for path in files), digest_size=8).hexdigest()
    if args.smoke:
        small = Training(epochs=1, batch_rows=4, max_tokens=128)
        return Plan(
            digest, rows=40, held_out=16, row_tokens=96, budget=8, answer_tokens=8, small_model="demo", training=small
        )
    return Plan(
        digest,
        rows=args.rows,
        held_out=args.held_out,
        row_tokens=args.row_tokens,
        budget=args.budget,
        answer_tokens=args.answer_tokens,
        small_model=args.small_model,
        training=Training(),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    work, seeds = args.work, range(2 if args.smoke else args.seeds)
    pool, extra = Path(args.pool), Path(args.extra) if args.extra else None
    if args.smoke:
        work = work or Path(tempfile.mkdtemp(prefix="downstream-"))
        pool, extra = next(path for path in pool_paths() if path.stem == "pool"), None
    plan = plan_of(args, [path for path in (pool, extra) if path])
    work.mkdir(parents=True, exist_ok=True)
    questions = Path(args.questions) if args.questions and not args.smoke else None
    methods = args.methods.split(",") if args.methods else list(SMOKE if args.smoke else METHODS)
    again = args.choose.split(",")
    choices = read_choices(args.choices, [m for m in METHODS if m not in again]) if args.choices else {}
    bench = Bench(work, plan, split(work, plan, pool, extra), questions, args.questions_per_task, choices)
    wanted = [(UNTRAINED, 0), *((method, seed) for seed in seeds for method in methods)]
    for number, (method, seed) in enumerate([] if args.table else wanted, 1):
        began = time.perf_counter()
        bench.run(method, seed)
        print(f"{number}/{len(wanted)} {method} {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    about = compared(bench.everything())
    print_table(about)
    print(json.dumps(about))


if __name__ == "__main__":
    main()
