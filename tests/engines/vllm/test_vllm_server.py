"""vLLM behind a URL: the same answers, every row once whatever happens to the server, and no other model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time

import pytest
from tiny_runs import read_jsonl
from vllm_runs import API_KEY, Proxy, VLLMServer, adg, chaos, finish, without_token_ids, write_config

from adg_plugin import select
from adg_plugin.config.schema import load_config
from adg_plugin.errors import ADGError
from adg_plugin.store import RunFolder

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def api_key():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADG_SERVER_API_KEY", API_KEY)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory, demo_model):
    server = VLLMServer(demo_model, tmp_path_factory.mktemp("server") / "log.txt")
    server.wait()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, server):
    """A selection through the server that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder, engine="vllm-server", server_urls=[server.url])
    return choose(config, folder / "run").run_dir


def choose(config, run):
    """Return a selection made in this process, which has imported everything already."""
    return select(config=load_config(config), output_dir=run, show_progress=False)


def stored(folder):
    """Return the answers of each row, each of which is there once."""
    run = RunFolder.read(folder)
    found = list(run.results())
    assert run.damage == []
    assert len({r.id for r in found}) == len(found)
    assert {r.reason for r in found} == {None}
    return {r.id: [a.token_ids.tolist() for a in r.answers] for r in found}


def test_one_command_selects_through_a_server(whole):
    assert len(stored(whole)) == 30
    assert len(read_jsonl(whole / "selected.jsonl")) == 8
    everything = b"".join(p.read_bytes() for p in whole.rglob("*") if p.is_file())
    assert API_KEY.encode() not in everything


def test_a_proxy_that_breaks_half_of_all_answers_changes_nothing(whole, server, tmp_path):
    happened = []
    proxies = [Proxy(server.port, chaos(seed, happened)) for seed in (1, 2)]
    config = write_config(tmp_path, engine="vllm-server", server_urls=[p.url for p in proxies])
    choose(config, tmp_path / "run")
    for proxy in proxies:
        assert proxy.completions
        proxy.close()
    assert {"503", "429", "dropped", "cut short", "half a JSON"} <= set(happened)
    assert stored(tmp_path / "run") == stored(whole)
    assert read_jsonl(tmp_path / "run" / "selected.jsonl") == read_jsonl(whole / "selected.jsonl")


def test_a_server_that_is_killed_and_comes_back_costs_nothing_but_time(whole, server, tmp_path):
    proxy = Proxy(server.port)
    settings = {"server_urls": [proxy.url], "server_concurrency": 4}
    config = write_config(tmp_path, engine="vllm-server", **settings)
    process = adg("select", config, "--out", tmp_path / "run")
    deadline = time.monotonic() + 240
    while proxy.completions < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.kill()
    before = proxy.completions
    assert before < 30
    time.sleep(2)
    assert proxy.completions - before <= 2  # those that had come through when it was killed
    server.start()
    finish(process)
    proxy.close()
    assert proxy.completions >= 30
    assert stored(tmp_path / "run") == stored(whole)


def refused(config, tmp_path):
    """Return what a selection says that is refused before it samples anything."""
    with pytest.raises(ADGError) as caught:
        choose(config, tmp_path / "run")
    assert caught.value.exit_code in (2, 6)
    assert not list((tmp_path / "run").rglob("part-*"))
    assert API_KEY not in str(caught.value)
    return str(caught.value)


def test_other_weights_behind_the_url_are_refused(server, tmp_path, demo_model):
    """A copy of the model, tuned a little: name, architecture and tokenizer are the same."""
    from safetensors.torch import load_file, save_file

    other = tmp_path / demo_model.name
    subprocess.run(["cp", "-r", str(demo_model), str(other)], check=True)
    weights = load_file(other / "model.safetensors")
    for name in weights:
        if "q_proj" in name or "v_proj" in name:
            weights[name] = weights[name] * 1.2
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    config = write_config(tmp_path / "c", model=str(other), engine="vllm-server", server_urls=[server.url])
    said = refused(config, tmp_path)
    assert f"server {server.url} has other weights than model {str(other)!r}: log-probabilities" in said
    assert "serve that model" in said


def test_another_tokenizer_is_refused(server, tmp_path, demo_model):
    other = tmp_path / demo_model.name
    subprocess.run(["cp", "-r", str(demo_model), str(other)], check=True)
    rules = json.loads((other / "tokenizer.json").read_text())
    vocabulary = rules["model"]["vocab"]
    one, two = "Ġquick", "Ġriver"
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(rules))
    config = write_config(tmp_path / "c", model=str(other), engine="vllm-server", server_urls=[server.url])
    assert f"server {server.url} has another tokenizer: token " in refused(config, tmp_path)


def test_a_model_of_another_name_is_refused_and_the_servers_own_name_may_be_given(server, tmp_path, demo_model):
    other = tmp_path / "tuned"
    subprocess.run(["cp", "-r", str(demo_model), str(other)], check=True)
    settings = {"model": str(other), "engine": "vllm-server", "server_urls": [server.url]}
    said = refused(write_config(tmp_path / "a", **settings), tmp_path)
    assert f"model is {str(other)!r}: server {server.url} has {demo_model}; start it with that model" in said
    said = refused(write_config(tmp_path / "b", server_model="nobody", **settings), tmp_path)
    assert f"server_model is 'nobody': server {server.url} has {demo_model}; use one of these" in said
    config = write_config(tmp_path / "c", 3, server_model=str(demo_model), budget=2, **settings)
    choose(config, tmp_path / "run")


def test_a_server_without_token_ids_is_refused(server, tmp_path):
    proxy = Proxy(server.port, without_token_ids, everywhere=True)
    config = write_config(tmp_path, engine="vllm-server", server_urls=[proxy.url])
    assert f"server {proxy.url} returns no token ids: it needs vLLM 0.10.2 or newer" in refused(config, tmp_path)
    proxy.close()
    assert not proxy.completions


def test_a_wrong_key_and_a_missing_one_are_told_apart(server, tmp_path, monkeypatch):
    config = write_config(tmp_path, engine="vllm-server", server_urls=[server.url], server_api_key_env="OTHER_KEY")
    assert "put its API key into the environment variable OTHER_KEY of this machine (it is not set)" in refused(
        config, tmp_path
    )
    monkeypatch.setenv("OTHER_KEY", "wrong-key-of-the-test")
    said = refused(config, tmp_path)
    assert "(the key there is not the right one)" in said
    assert "wrong-key-of-the-test" not in said


def test_too_short_a_context_is_refused(server, tmp_path):
    settings = {"engine": "vllm-server", "server_urls": [server.url], "max_prompt_tokens": 1500}
    said = refused(write_config(tmp_path, **settings), tmp_path)
    assert f"server {server.url} takes 1280 tokens, a row may have 1512: start it with --max-model-len 1512" in said


def test_a_server_that_is_not_there_is_named(tmp_path):
    config = write_config(tmp_path, engine="vllm-server", server_urls=["http://127.0.0.1:9"])
    said = refused(config, tmp_path)
    assert "server http://127.0.0.1:9 cannot be used" in said
    assert "take it out of server_urls" in said


def test_the_gap_of_rounding_is_far_from_the_tolerance(server, demo_model, monkeypatch):
    """The check is by log-probabilities: those of the same model differ by half of what is allowed at most."""
    from adg_plugin.config.schema import ADGConfig
    from adg_plugin.engines.models.loading import load_backbone
    from adg_plugin.engines.vllm import server_check
    from adg_plugin.engines.vllm.client import Server, make_client

    monkeypatch.setattr(server_check, "_TOLERANCE", 0.7 * server_check._TOLERANCE)
    for dtype in ("bfloat16", "float32"):
        config = ADGConfig(model="demo", dtype=dtype, engine="vllm-server", server_urls=(server.url,))
        backbone = load_backbone(config)
        probe = server_check.Probe.of(backbone.model, backbone.tokenizer)

        async def check(config=config, probe=probe):
            client = make_client(config)
            one = Server(server.url, client, config)
            await server_check.check_server(one, config, probe, 1280)
            await client.aclose()
            return one.verified

        assert asyncio.run(check())
