"""Does the choice of rows matter? Each method chooses as many, and the same LoRA is trained on them and evaluated.

    python benchmarks/downstream.py WORK --pool pool.jsonl --extra other.jsonl --seeds 3    resumable: run it again
    python benchmarks/downstream.py WORK --choices benchmarks/results/downstream.jsonl     trained and evaluated again
    python benchmarks/downstream.py WORK --table                                           the table alone
    python benchmarks/downstream.py --smoke                                                minutes, shipped data only
    python benchmarks/downstream.py --smoke --questions FOLDER --questions-per-task 2      with questions

The pool is split once: `--held-out` rows for the loss, `--rows` to choose from. A seed is that of the method's own
draws (ADG's answers and bins, the rows of random) and that of the training; methods are compared with random seed by
seed and evaluation row by evaluation row. WORK holds the split, a run folder per seed, adapters, results.jsonl and
questions.jsonl. A line counts for runs of the plan it names, and an answer also by its number of questions per task.
Progress goes to stderr; the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from downstream_choices import METHODS, Plan, choose, read_choices, rows_of, split
from downstream_runs import Training, answer_loss, load, read_rows, train
from downstream_table import compared, print_table
from downstream_tasks import ask

from adg_plugin.demo import pool_paths

UNTRAINED = "untrained"
RESULTS, QUESTIONS = "results.jsonl", "questions.jsonl"


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

    def marks(self, name: str) -> dict[str, Any]:
        """Return what every line of this bench's runs says in a file."""
        plan = {"plan": asdict(self.plan)}
        return plan | {"questions_per_task": self.questions_per_task} if name == QUESTIONS else plan

    def results(self, name: str) -> dict[tuple[str, int], dict[str, Any]]:
        """Return the lines of this bench's runs in a file, by method and seed."""
        path, marks = self.work / name, self.marks(name)
        found = read_rows(path) if path.is_file() else []
        ours = [line for line in found if all(line.get(key) == value for key, value in marks.items())]
        return {(line["method"], line["seed"]): line for line in ours}

    def add(self, name: str, method: str, seed: int, result: dict[str, Any]) -> None:
        line = {"method": method, "seed": seed, **self.marks(name), **result}
        with (self.work / name).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")

    def refuse_other_rows(self, wanted: Iterable[tuple[str, int]]) -> None:
        """Exit where a run is done that was trained on rows of another origin than those of this bench.

        Rows that were chosen here took time to choose, which their line says; rows of --choices did not.
        """
        done = self.results(RESULTS)
        for method, seed in wanted:
            line, given = done.get((method, seed), {}), self.choices.get((method, seed))
            what = f"error: {self.work / RESULTS}: {method}, seed {seed}, was trained on"
            if given is None and "ids" in line and "choosing_s" not in line:
                sys.exit(f"{what} rows of --choices: give that file again, or use another WORK")
            if given is not None and given != set(line.get("ids", given)):
                sys.exit(f"{what} other rows than those of --choices: use another WORK")

    def adapter(self, method: str, seed: int, done: dict[str, Any] | None) -> tuple[Path, dict[str, Any]]:
        """Return the folder of a run's adapter, and the ids and times of training it where that was needed.

        Args:
            done: the run's line, whose rows are then those to train on: an adapter of other rows, or of another plan,
                is trained again.
        """
        folder = self.work / "adapters" / f"{method}-{seed}"
        about, ids = folder / "plan.json", self.choices.get((method, seed))
        if done is not None:
            ids = set(done["ids"])
            if about.is_file() and json.loads(about.read_text(encoding="utf-8")) == self.trained_on(ids):
                return folder, {}
        began, result = time.perf_counter(), dict[str, Any]()
        if ids is None:
            rows = choose(self.work, self.plan, method, seed)
            result["choosing_s"] = time.perf_counter() - began
        else:
            rows = rows_of(self.work, method, ids)
        result["ids"] = sorted(str(row["id"]) for row in rows)
        about.unlink(missing_ok=True)  # a training that is broken off leaves an adapter that is nobody's
        result["training_s"] = train(rows, self.plan.training, seed, folder)
        about.write_text(json.dumps(self.trained_on(result["ids"])), encoding="utf-8")
        return folder, result

    def trained_on(self, ids: Iterable[str]) -> dict[str, Any]:
        """Return what plan.json says beside an adapter that was trained on these rows."""
        return {"plan": asdict(self.plan), "ids": sorted(ids)}

    def run(self, method: str, seed: int) -> None:
        """Choose, train, and evaluate the loss, then the questions, as far as that is not done."""
        done = self.results(RESULTS).get((method, seed))
        # An answer without its result is of an adapter that is trained again now.
        asked = self.questions is None or (done is not None and (method, seed) in self.results(QUESTIONS))
        if done is not None and asked:
            return
        adapter, result = (None, {}) if method == UNTRAINED else self.adapter(method, seed, done)
        gc.collect()  # PEFT's models hold themselves
        model = load(self.plan.training, adapter)
        if done is None:
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
        """Return the lines of this bench's runs in both files."""
        return [line for name in (RESULTS, QUESTIONS) for line in self.results(name).values()]


def method_names(text: str) -> list[str]:
    """Return the names in a comma-separated list of methods."""
    names = text.split(",")
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(METHODS)}")
    return names


def at_least_one(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("--pool", default="../shared/data/pool.jsonl")
    parser.add_argument("--extra", default="../shared/eval/user_oriented.jsonl", help="more rows to evaluate on")
    parser.add_argument(
        "--questions",
        help="folder with bbh/ and gsm8k_test.jsonl; '': none; default: ../shared/eval, with --smoke none",
    )
    parser.add_argument("--questions-per-task", type=at_least_one, default=20)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--row-tokens", type=int, default=256, help="longer rows are left out")
    parser.add_argument("--budget", type=int, default=96)
    parser.add_argument("--answer-tokens", type=int, default=48)
    parser.add_argument("--small-model", default="demo", help="of superfiltering")
    parser.add_argument("--seeds", type=at_least_one, help="default: 3; with --smoke, 1")
    parser.add_argument("--methods", type=method_names, default=list(METHODS), help="default: all")
    parser.add_argument("--choices", type=Path, metavar="FILE", help="results to take the chosen rows from")
    parser.add_argument(
        "--choose",
        type=method_names,
        default=[],
        metavar="METHODS",
        help="with --choices: these choose anew all the same",
    )
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument("--smoke", action="store_true", help="a few rows of the package's own demo pool")
    args = parser.parse_args(arguments)
    if args.questions is None:
        args.questions = "" if args.smoke else "../shared/eval"
    args.seeds = args.seeds or (1 if args.smoke else 3)
    return args


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
    work, pool, extra = args.work, Path(args.pool), Path(args.extra) if args.extra else None
    if args.smoke:
        work = work or Path(tempfile.mkdtemp(prefix="downstream-"))
        pool, extra = next(path for path in pool_paths() if path.stem == "pool"), None
    plan = plan_of(args, [path for path in (pool, extra) if path])
    work.mkdir(parents=True, exist_ok=True)
    questions = Path(args.questions) if args.questions else None
    choices = read_choices(args.choices, [m for m in METHODS if m not in args.choose]) if args.choices else {}
    bench = Bench(work, plan, split(work, plan, pool, extra), questions, args.questions_per_task, choices)
    wanted = [(UNTRAINED, 0), *((method, seed) for seed in range(args.seeds) for method in args.methods)]
    if args.table:
        wanted = []
    bench.refuse_other_rows(wanted)
    for number, (method, seed) in enumerate(wanted, 1):
        began = time.perf_counter()
        bench.run(method, seed)
        print(f"{number}/{len(wanted)} {method} {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    about = compared(bench.everything())
    print_table(about)
    print(json.dumps(about))


if __name__ == "__main__":
    main()
