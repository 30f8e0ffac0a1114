"""Likelihoods in a run folder: what measures them, reads them back, and transcribes their definition."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import tiny_tokenizer

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models.loading import Source
from adg_plugin.pipeline.run import prepare
from adg_plugin.pipeline.stage import Pool
from adg_plugin.selectors.measure import stored_measure
from adg_plugin.selectors.registry import selector
from adg_plugin.store import RunFolder, keys


class Asking:
    """A run folder of a pool, and everything that a selector by likelihood wants."""

    def __init__(self, folder: Path, model: Path, rows, **settings):
        self.folder = folder
        self.config = ADGConfig(model=str(model), device="cpu", num_samples=3, max_new_tokens=6, **settings)
        self.source = Source.configured(self.config)
        self.rows = rows

    def stage(self, run):
        recipe = keys.sampling_fingerprint(self.config, model=self.source.identity, eos_ids=self.source.eos_ids)
        prepare(run, Pool.of(self.config, self.rows), self.config, self.source, recipe, own=False)

    def measure(self, method="ifd", **settings):
        with RunFolder.open(self.folder) as run:
            self.stage(run)
            return selector(method).fill(run, self.config.updated(**settings), self.source, show=False)

    def found(self, method="ifd", **settings):
        run, chooser = RunFolder.read(self.folder), selector(method)
        judge = chooser.judge(self.config.updated(**settings), self.source)
        table = stored_measure(run, chooser.measure, judge, judge.rows(run)).sort_by("id")
        columns = (table[name].to_numpy().tolist() for name in ("with_prompt", "alone", "tokens", "reason"))
        return dict(zip(table["id"].to_pylist(), zip(*columns, strict=True), strict=True))

    def staged(self):
        return {row.prompt.id: row for row in RunFolder.read(self.folder).staged_rows({r["id"] for r in self.rows})}

    def parts(self, method="ifd"):
        return sorted((self.folder / "measures" / method).glob("*.parquet"))


def mean_nll(model, before, answer, skip=0):
    """Of one sequence by itself; the first `skip` tokens of the answer are not counted."""
    before, answer = [*before, *answer[:skip]], answer[skip:]
    ids = torch.tensor([[*map(int, before), *map(int, answer)]])
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
    return -float(log_p[len(before) - 1 : -1].gather(1, ids[0, len(before) :, None]).mean())


def tokens(text):
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
