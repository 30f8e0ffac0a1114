"""vLLM in this process: the distribution of the other engine's answers, its vectors, and whole selections."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from paths import ROOT
from tiny_runs import read_jsonl, write_jsonl
from vllm_runs import VLLM_OPTIONS, adg, finish, write_config

from adg_plugin.config.schema import ADGConfig
from adg_plugin.scoring.geometry import anisotropy, dispersion
from adg_plugin.store import RunFolder
from adg_plugin.store.records import Prompt, Sampled

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

QUESTIONS = ("Say yes or no.", "What is the capital of France?", "Count to three.")
CONFIG = ADGConfig(
    model="demo", dtype="bfloat16", num_samples=64, max_new_tokens=16, engine="vllm", vllm_options=VLLM_OPTIONS
)
SEEDS = range(3)


@pytest.fixture(scope="module")
def source():
    from adg_plugin.engines.models.loading import Source

    return Source.configured(CONFIG)


@pytest.fixture(scope="module")
def prompts(source):
    found = []
    for number, text in enumerate(QUESTIONS):
        turns = [{"role": "user", "content": text}]
        ids = source.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        found.append(Prompt(f"q{number}", np.array(ids, np.int32), (3, len(ids) - 5), bytes(16), text))
    return found


@pytest.fixture(scope="module")
def sampler(source):
    from adg_plugin.engines.vllm.in_process import VLLMSampler

    sampler = VLLMSampler(CONFIG, source.tokenizer, source.eos_ids, dtype="bfloat16", positions=source.positions)
    yield sampler
    sampler.close()


def draws(sampler, prompts, seed, **changes):
    """Return the answers of each prompt under another seed; the engine is the same."""
    sampler._config = CONFIG.updated(seed=seed, **changes)
    return {r.id: r for r in sampler.run(prompts)}


@pytest.fixture(scope="module")
def by_vllm(sampler, prompts):
    return [draws(sampler, prompts, seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def by_hf(source, prompts):
    from adg_plugin.engines.one_pass.engine import OnePassEngine

    backbone = source.load()
    found = []
    for seed in SEEDS:
        config = CONFIG.updated(seed=seed, engine="hf", vllm_options={})
        engine = OnePassEngine(backbone.model, source.tokenizer, config, source.eos_ids, vectors=False)
        found.append({r.id: r for r in engine.run(prompts)})
    return found


def answers(found, id):
    return [answer for results in found for answer in results[id].answers]


def p_values(ours, theirs):
    """Return those of equal lengths (Kolmogorov-Smirnov) and of equal first tokens (chi-squared)."""
    from scipy.stats import chi2_contingency, ks_2samp

    lengths = ks_2samp(*([len(a.token_ids) for a in side] for side in (ours, theirs))).pvalue
    first = [Counter(int(a.token_ids[0]) for a in side) for side in (ours, theirs)]
    common = [t for t, n in (first[0] + first[1]).items() if n >= 10]
    table = [[c[t] for t in common] + [sum(c.values()) - sum(c[t] for t in common)] for c in first]
    table = np.array(table)[:, np.sum(table, axis=0) > 0]
    return float(lengths), float(chi2_contingency(table).pvalue)


@pytest.mark.parametrize("id", ["q0", "q1", "q2"])
def test_answers_follow_the_distribution_of_the_other_engine(by_vllm, by_hf, id):
    ours, theirs = answers(by_vllm, id), answers(by_hf, id)
    assert len(ours) == len(theirs) == 64 * len(SEEDS)
    assert len({len(a.token_ids) for a in ours}) > 1
    assert min(p_values(ours, theirs)) > 1e-4  # the draws are the same on every run, but not on every kind of processor
    assert {a.finish_reason for a in ours} == {a.finish_reason for a in theirs}


def test_the_distribution_test_would_see_another_temperature(sampler, prompts, by_hf):
    sampler._settings = sampler._settings | {"temperature": 0.7}
    colder = [draws(sampler, prompts, SEEDS[0])]
    sampler._settings = sampler._settings | {"temperature": CONFIG.temperature}
    seen = [min(p_values(answers(colder, id), answers(by_hf, id))) for id in ("q0", "q1", "q2")]
    assert min(seen) < 0.001


def test_top_k_cuts_and_a_repetition_penalty_spreads(sampler, prompts, by_vllm):
    before = sampler._settings
    try:
        sampler._settings = before | {"top_k": 2}
        two = draws(sampler, prompts, SEEDS[0])
        sampler._settings = before | {"repetition_penalty": 1.5}
        spread = draws(sampler, prompts, SEEDS[0])
    finally:
        sampler._settings = before
    for result in two.values():
        assert len({int(answer.token_ids[0]) for answer in result.answers}) <= 3  # with a tie
    repeated = [
        sum(len(a.token_ids) - len(set(a.token_ids.tolist())) for r in found.values() for a in r.answers)
        for found in (spread, by_vllm[0])
    ]
    assert repeated[0] < repeated[1] / 2


def test_the_answers_of_a_row_differ_and_are_drawn_again_the_same(sampler, prompts, by_vllm):
    again = draws(sampler, prompts, 0)
    assert again.keys() == by_vllm[0].keys()
    for id, result in again.items():
        assert [a.token_ids.tolist() for a in result.answers] == [a.token_ids.tolist() for a in by_vllm[0][id].answers]
    assert len({a.token_ids.tobytes() for a in by_vllm[0]["q1"].answers}) > 32


def test_end_tokens_and_special_tokens_are_not_in_answers(by_vllm, source):
    for answer in answers(by_vllm, "q0"):
        assert not set(answer.token_ids.tolist()) & set(source.eos_ids)
        assert answer.finish_reason in ("eos", "length")
        assert (answer.finish_reason == "length") == (len(answer.token_ids) == 16)
        assert answer.text == source.tokenizer.decode(answer.token_ids.tolist(), skip_special_tokens=True)


def test_vectors_of_its_answers_are_those_of_a_plain_forward(by_vllm, prompts):
    """In float32, against one forward pass per answer; and D and I of these."""
    from adg_plugin.engines.encode.embed import answer_sequence, embed
    from adg_plugin.engines.encode.shared_prompt import SharedPromptEncoder
    from adg_plugin.engines.models.loading import load_backbone

    config = ADGConfig(model="demo", dtype="float32", keep_vectors=True)
    model = load_backbone(config).model
    rows = [Sampled(p, by_vllm[0][p.id].answers[:5]) for p in prompts]
    for result in SharedPromptEncoder(model, config).run(rows):
        row = next(r for r in rows if r.id == result.id)
        sequences = [answer_sequence(row.prompt.token_ids, a.token_ids) for a in row.answers]
        vectors = embed(model, sequences, (-4, -3, -2, -1)).numpy()
        np.testing.assert_allclose(result.gram, vectors @ vectors.T, atol=1e-5)
        for part in (dispersion, anisotropy):
            np.testing.assert_allclose(part(result.gram[None]), part((vectors @ vectors.T)[None]), atol=1e-4)


def test_a_row_that_is_all_empty_is_rejected(sampler, prompts):
    eos, sampler._eos = sampler._eos, sampler._eos
    sampler._settings = sampler._settings | {"allowed_token_ids": sorted(eos)}
    try:
        results = draws(sampler, prompts[:1], 0, num_samples=3)
    finally:
        sampler._settings.pop("allowed_token_ids")
    assert results["q0"].reason == "too_few_answers"


@pytest.fixture(scope="module")
def selected(tmp_path_factory, sampler, by_vllm):
    """A selection by one command; the sampler above is done by then, so that two are not in memory at once."""
    sampler.close()
    folder = tmp_path_factory.mktemp("vllm")
    config = write_config(folder, engine="vllm", vllm_options=VLLM_OPTIONS)
    process = adg("select", config, "--out", folder / "whole")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "vllm" not in out.casefold().replace(str(folder).casefold(), "")  # what vLLM says goes to stderr
    return folder, config


def test_one_command_selects(selected):
    folder, _ = selected
    run = RunFolder.read(folder / "whole")
    assert run.counts() == replace(run.counts(), prompts=30, completed=30, rejected=0, sampled=0)
    assert len(read_jsonl(folder / "whole" / "selected.jsonl")) == 8
    assert not list((folder / "whole" / "samples").glob("*"))  # embedded, so kept once
    assert run.manifest()["recipe"]["engine"] == "vllm"


def stored(folder):
    return {r.id: [a.token_ids.tolist() for a in r.answers] for r in RunFolder.read(folder).results()}


def test_rows_have_their_own_answers_whatever_their_neighbours(selected, tmp_path):
    folder, _ = selected
    rows = read_jsonl(folder / "pool.jsonl")
    other = write_config(tmp_path, engine="vllm", vllm_options=VLLM_OPTIONS, budget=4)
    write_jsonl(tmp_path / "pool.jsonl", rows[::-2][:12])
    finish(adg("select", other, "--out", tmp_path / "run"))
    some, whole = stored(tmp_path / "run"), stored(folder / "whole")
    assert len(some) == 12
    assert some == {id: whole[id] for id in some}


def test_an_estimate_measures_it_and_keeps_what_it_drew(selected):
    folder, config = selected
    process = adg("estimate", config, "--out", folder / "estimated", "--rows", "12", "--json")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    about = json.loads(out)
    assert (about["rows"], about["measured"]) == (30, 12)
    assert about["low_s"] < about["total_s"] < about["high_s"]
    kept, whole = stored(folder / "estimated"), stored(folder / "whole")
    assert len(kept) == 12
    assert kept == {id: whole[id] for id in kept}


def test_stages_in_two_environments_are_one_selection(selected):
    """vLLM's environment samples; another, which has no vLLM, embeds on two ranks and selects."""
    folder, config = selected
    out = folder / "stages"
    assert finish(adg("sample", config, "--out", out)) == str(out)
    run = RunFolder.read(out)
    assert (run.counts().sampled, run.counts().completed) == (30, 0)
    trainer = ROOT / ".venv" / "bin" / "python"
    python = str(trainer) if trainer.exists() else sys.executable
    if trainer.exists():
        missing = subprocess.run([python, "-c", "import vllm"], capture_output=True)
        assert missing.returncode != 0
    assert finish(adg("embed", config, "--out", out, python=python, ranks=2)) == str(out)
    assert RunFolder.read(out).counts().completed == 30
    finish(adg("select", config, "--out", out, python=python))
    assert stored(out) == stored(folder / "whole")
    assert read_jsonl(out / "selected.jsonl") == read_jsonl(folder / "whole" / "selected.jsonl")


def test_another_model_in_the_same_folder_samples_again(selected, tmp_path):
    """Answers of one model are never taken for those of another."""
    from safetensors.torch import load_file, save_file

    from adg_plugin.demo import model_path

    folder, _ = selected
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", str(model_path()), str(other)], check=True)
    weights = load_file(other / "model.safetensors")
    name = next(n for n in weights if "q_proj" in n)
    weights[name] = weights[name] * 1.01
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    config = write_config(tmp_path / "config", model=str(other), engine="vllm", vllm_options=VLLM_OPTIONS)
    embedding = adg("embed", config, "--out", folder / "whole")
    _, err = embedding.communicate(timeout=300)
    assert embedding.returncode == 3
    assert "was made with model 'demo'" in err


def test_four_bits_are_refused_without_the_plugin_of_vllm(source):
    """Never sampled in bfloat16 in silence."""
    from adg_plugin.engines.vllm.in_process import VLLMSampler
    from adg_plugin.errors import MissingExtraError

    config = CONFIG.updated(load_in_4bit=True)
    with pytest.raises(MissingExtraError, match=r"load_in_4bit with engine: vllm needs `vllm-bnb-plugin`: pip install"):
        VLLMSampler(config, source.tokenizer, source.eos_ids, dtype="bfloat16")


def test_only_the_form_of_four_bits_that_vllm_has_is_taken(monkeypatch):
    from adg_plugin.engines.vllm import in_process as vllm
    from adg_plugin.errors import ConfigError

    monkeypatch.setattr(vllm, "version", lambda name: "0.0.3")
    with pytest.raises(ConfigError) as caught:
        vllm.quantization(CONFIG.updated(load_in_4bit=True, bnb_4bit_quant_type="fp4"))
    assert len(caught.value.problems) == 2
    right = CONFIG.updated(load_in_4bit=True, bnb_4bit_use_double_quant=True)
    assert vllm.quantization(right) == "bitsandbytes"
