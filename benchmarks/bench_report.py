"""How long `adg report` takes for a large run, how large its page is, and how fast it opens in a browser.

    python benchmarks/bench_report.py
    python benchmarks/bench_report.py --rows 200000

A run folder of random rows with five answers of 40 words each is written first; no model is asked. The browser is
Debian's chromium, driven by Playwright. Progress goes to stderr; the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adg_plugin.config.schema import ADGConfig
from adg_plugin.pipeline.run import choose
from adg_plugin.report.gather import gather
from adg_plugin.report.page import write_page
from adg_plugin.store import RunFolder, StagedRow
from adg_plugin.store.records import Answer, Prompt, RowResult

ANSWERS, WIDTH, TEXTS = 5, 64, 500
CONFIG = ADGConfig(model="demo", budget=0.2)


def main() -> None:
    """Write a run folder, its report, and open it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    rows = parser.parse_args().rows
    rng = np.random.default_rng(0)
    words = np.array([f"word{n}" for n in range(5_000)])
    texts = [" ".join(rng.choice(words, 40)) for _ in range(TEXTS)]
    with tempfile.TemporaryDirectory(prefix="bench-report-") as folder:
        run_dir = Path(folder) / "run"
        write_run(run_dir, rows, texts, rng)
        print(f"{rows} rows written", file=sys.stderr)
        began = time.monotonic()
        write_page(gather(run_dir), run_dir / "report.html")
        result: dict[str, float] = {
            "rows": rows,
            "seconds": round(time.monotonic() - began, 1),
            "megabytes": round((run_dir / "report.html").stat().st_size / 1e6, 2),
        }
        if browser := shutil.which("chromium"):
            result |= opened(run_dir / "report.html", browser)
    print(json.dumps(result))


def write_run(run_dir: Path, rows: int, texts: list[str], rng: np.random.Generator) -> None:
    """Write a finished run of random rows."""

    def staged() -> Iterator[StagedRow]:
        for n in range(rows):
            text = f"{n} {texts[n % TEXTS][:160]}"
            prompt = Prompt(f"row-{n:07}", np.arange(30, dtype=np.int32), (3, 20), n.to_bytes(16, "big"), text)
            data = json.dumps({"instruction": text, "category": f"kind {n % 9}"})
            yield StagedRow(prompt, text, texts[(n + 7) % TEXTS], data, f"pool.jsonl:{n + 1}")

    with RunFolder.open(run_dir) as run:
        run.write_config({"config": CONFIG.model_dump(mode="json"), "recipe": {}})
        run.stage_prompts(staged(), digest="bench")
        for n in range(rows):
            vectors = rng.standard_normal((ANSWERS, WIDTH)) + 2 * rng.standard_normal(WIDTH)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            prompt = rng.standard_normal(WIDTH)
            prompt_vector = (prompt / np.linalg.norm(prompt)).astype(np.float16)
            answers = tuple(
                Answer(np.arange(20, dtype=np.int32), texts[(n * ANSWERS + k) % TEXTS], "eos") for k in range(ANSWERS)
            )
            gram = (vectors @ vectors.T).astype(np.float32)
            run.append(RowResult(f"row-{n:07}", n.to_bytes(16, "big"), answers, gram, prompt_vector))
        choose(run, CONFIG, {}, {"took": {"rows": rows}, "began": time.monotonic()})


def opened(path: Path, browser: str) -> dict[str, float]:
    """Return the seconds until the page is ready, until a search shows its rows, and until a column is sorted."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = launched.new_page()
        steps = {
            "ready_s": lambda: (page.goto(path.as_uri()), page.wait_for_selector("html[data-ready=yes]")),
            "search_s": lambda: (page.fill("#search", "row-00049"), page.inner_text("#count")),
            "sort_s": lambda: (
                page.fill("#search", ""),
                page.click("th[data-column=D] button"),
                page.inner_text("#count"),
            ),
        }
        found = {}
        for name, step in steps.items():
            began = time.monotonic()
            step()
            found[name] = round(time.monotonic() - began, 2)
        launched.close()
    return found


if __name__ == "__main__":
    main()
