"""What a sampler does about servers that are sick, slow or wrong; a stand-in speaks for vLLM, whose faults it feigns.

The real servers are in test_vllm_server.py; none of them can be told to fail for one row only.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from stand_in import StandIn
from tiny_models import EOS, VOCABULARY, tiny_prompts, tiny_tokenizer

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from adg_plugin.config.schema import ADGConfig
from adg_plugin.console import SamplingProgress
from adg_plugin.engines.split import SplitEngine
from adg_plugin.engines.vllm import server as vllm_server
from adg_plugin.engines.vllm.server_check import Probe
from adg_plugin.errors import ConfigError, ServerError
from adg_plugin.pipeline.sample import sample
from adg_plugin.store.records import RowResult

KEY = "sk-of-the-test"
PROBE = Probe("", np.zeros(1, np.int32), np.zeros(0, np.float32))


@pytest.fixture
def stand_in(monkeypatch):
    """A function that starts servers; each passes the check of its model."""

    async def passed(server, *_):
        server.model, server.verified = "m", True

    monkeypatch.setattr(vllm_server, "check_server", passed)
    monkeypatch.setattr(vllm_server, "_WAIT_S", (0.01, 0.1))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started = []

    def start(*faults):
        started.extend(StandIn(fault) for fault in faults)
        return started

    yield start
    for one in started:
        one.close()


def draw(servers, rows=40, **settings):
    """Return the results of some rows by id."""
    config = ADGConfig(
        engine="vllm-server", server_urls=tuple(s.url for s in servers), num_samples=3, max_new_tokens=9, **settings
    )
    sampler = vllm_server.ServerSampler(
        config, tiny_tokenizer(), (EOS,), probe=PROBE, longest=20, vocabulary=VOCABULARY
    )
    try:
        found = list(sampler.run(tiny_prompts([5 + n % 7 for n in range(rows)])))
    finally:
        sampler.close()
    assert len(found) == len({r.id for r in found}) == rows
    return {r.id: r for r in found}


def test_a_sick_server_does_not_draw_all_rows_to_itself(stand_in):
    servers = stand_in(lambda reply: 503, lambda reply: None, lambda reply: 500)
    found = draw(servers, server_concurrency=4)
    assert {r.reason for r in found.values()} == {None}
    assert max(server.asked for server in servers) <= len(
        found
    )  # a row is not asked of one that refused it, but of another
    assert all([a.token_ids.tolist() for a in r.answers] == [[70, 71]] * 3 for r in found.values())


def test_a_server_that_fails_for_a_while_refuses_no_row(stand_in):
    until = time.monotonic() + 1.5
    servers = stand_in(lambda reply: 500 if time.monotonic() < until else None)
    assert {r.reason for r in draw(servers, rows=5).values()} == {None}
    assert servers[0].asked > 5 + 6  # longer than the tries that a row has while others succeed


@pytest.mark.parametrize("status", [500, 400, 422])
def test_a_row_that_a_server_cannot_take_is_refused_alone(stand_in, status, caplog):
    bad = tiny_prompts([5 + n % 7 for n in range(40)])[7].token_ids.tolist()
    servers = stand_in(lambda reply: status if reply.body["prompt"] == bad else time.sleep(0.01))
    found = draw(servers, server_concurrency=2)
    assert {id for id, r in found.items() if r.reason} == {"p7"}
    assert found["p7"].reason == "refused_by_server"
    assert f"row 'p7' is left out for now: {servers[0].url}/v1/completions says {status}: is {status}" in caplog.text


def test_an_answer_cut_shorter_than_asked_is_not_taken(stand_in):
    """As by a server with a limit of its own."""

    def shorten(reply):
        if reply.body["prompt"] == bad:
            reply.choice.update(token_ids=[70, 71], finish_reason="length")
        time.sleep(0.01)

    bad = tiny_prompts([5 + n % 7 for n in range(40)])[3].token_ids.tolist()
    servers = stand_in(shorten)
    assert {id for id, r in draw(servers, server_concurrency=2).items() if r.reason} == {"p3"}


def test_no_response_ends_the_run_after_the_time_set(stand_in):
    servers = stand_in(lambda reply: 429)
    with pytest.raises(ServerError, match=r"no usable response for 1 s \(the last error: .*429: is 429\)"):
        draw(servers, rows=3, server_timeout_s=1)


def test_every_sampling_setting_is_sent(stand_in):
    servers = stand_in(lambda reply: None)
    draw(servers, rows=1, temperature=1.3, top_k=7, top_p=0.8, repetition_penalty=1.2, seed=3)
    draw(servers, rows=1)
    sent = ("temperature", "top_k", "top_p", "repetition_penalty", "min_p", "max_tokens", "n", "stop_token_ids")
    asked, by_default = ([body[name] for name in sent] for body in servers[0].bodies)
    assert asked == [1.3, 7, 0.8, 1.2, 0.0, 9, 3, [EOS]]
    assert by_default == [1.4, 50, 0.9, 1.0, 0.0, 9, 3, [EOS]]


def test_the_key_goes_into_the_header_and_nowhere_else(stand_in, monkeypatch):
    servers = stand_in(lambda reply: None)
    monkeypatch.setenv("ADG_SERVER_API_KEY", f"{KEY}\n")  # as files of secrets end
    draw(servers, rows=2)
    assert set(servers[0].headers) == {f"Bearer {KEY}"}
    monkeypatch.setenv("ADG_SERVER_API_KEY", f"{KEY}\nx")
    with pytest.raises(ConfigError, match="ADG_SERVER_API_KEY: the API key there has signs") as caught:
        draw(servers, rows=2)
    assert KEY not in str(caught.value)


class Everything:
    """An encoder that takes every row."""

    def run(self, rows):
        for row in rows:
            yield RowResult(row.id, row.prompt.key, row.answers, np.eye(3, dtype=np.float32), np.ones(4, np.float16))


class Stored(dict):
    def append(self, result):
        self[result.id] = result


class Drawn:
    """A sampler that refuses some rows."""

    def __init__(self, refuses):
        self._refuses = refuses

    def run(self, prompts):
        for number, prompt in enumerate(prompts):
            reason = "refused_by_server" if self._refuses(number) else None
            yield RowResult(prompt.id, prompt.key, (), None, None, reason)


def test_some_refused_rows_in_each_chunk_do_not_end_a_run():
    stored, stats = Stored(), {}
    prompts = tiny_prompts([6] * 200)
    engine = SplitEngine(Drawn(lambda n: n % 10 == 0), Everything())
    with SamplingProgress(200, show=False) as progress:
        sample(stored, engine, progress, [prompts], stats)
    assert len(stored) == 180
    assert len(stats["skipped"]) == 20


def test_a_run_ends_when_most_rows_are_refused():
    stored = Stored()
    engine = SplitEngine(Drawn(lambda n: n > 10), Everything())
    with (
        SamplingProgress(200, show=False) as progress,
        pytest.raises(ServerError, match=r"most rows were refused; the warnings say why\. What is sampled is kept"),
    ):
        sample(stored, engine, progress, [tiny_prompts([6] * 200)])
    assert len(stored) == 11
