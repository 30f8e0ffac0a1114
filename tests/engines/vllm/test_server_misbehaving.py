"""Servers whose answers are wrong, endless, slow or hostile: a clear error or another try; the run folder goes on."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import time
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stand_in import StandIn
from tiny_models import EOS, VOCABULARY
from tiny_runs import pool_rows, write_jsonl

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from adg_plugin import ADGConfig
from adg_plugin.engines.models.loading import Source
from adg_plugin.engines.vllm import server as vllm_server
from adg_plugin.engines.vllm.server_check import Probe
from adg_plugin.errors import ADGError, visible
from adg_plugin.pipeline.run import run_selection
from adg_plugin.pipeline.stage import Pool
from adg_plugin.store import RunFolder
from adg_plugin.store.parts import SCHEMA, write_part

pytestmark = pytest.mark.tiny

KEY = "sk-Of-The-Test/0123456789"
HOSTILE = f"\x1b[2J\x9b31m\u202e\x00\ud800 you said {KEY}, {KEY.upper()} and {KEY[:12]}\n{KEY[:9]}\u200b{KEY[9:]}"
LIMIT = 6  # tokens of an answer


def first(**changes):
    """Return the fault of a server whose first answer to a row is another."""
    return lambda reply: reply.choice.update(changes)


def drip(reply):
    reply.handler.send_response(200)
    reply.handler.send_header("Content-Length", "100000")
    reply.handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(100):
            reply.handler.wfile.write(b" ")
            time.sleep(0.05)
    reply.handler.close_connection = True
    return True


def endless(reply):
    reply.handler.send_response(200)
    reply.handler.send_header("Transfer-Encoding", "chunked")
    reply.handler.end_headers()
    while True:
        reply.handler.wfile.write(b"10000\r\n" + b" " * (1 << 16) + b"\r\n")


def silent(reply):
    time.sleep(1.5)
    reply.handler.close_connection = True
    return True


def duplicated(reply):
    reply.choice["index"] = 1


def reordered(reply):
    """Not wrong: the numbers tell which answer is which."""
    reply.data["choices"].reverse()


def dropped(reply):
    reply.handler.close_connection = True
    return True


def body(data, status=200, **options):
    return lambda reply: reply.send(data, status, **options)


def changed(**changes):
    return lambda reply: reply.data.update(changes)


# What a server does whenever it is asked for answers -> what is said.
WRONG = {
    "a token beyond the vocabulary": (first(token_ids=[70, VOCABULARY, EOS]), "holds 260, which is none of the mod"),
    "a token below zero": (first(token_ids=[70, -1, EOS]), "holds -1, which is none of the model's 260 tokens"),
    "a token as a float": (first(token_ids=[70.0, 71, EOS]), "holds 70.0, which is none"),
    "a token as text": (first(token_ids=["70", 71, EOS]), "holds '70', which is none"),
    "a token that is true": (first(token_ids=[True, 71, EOS]), "holds True, which is none"),
    "no token": (first(token_ids=[None, 71, EOS]), "holds None, which is none"),
    "not a number": (first(token_ids=[float("nan"), EOS]), "holds nan, which is none"),
    "a token of 70 bits": (first(token_ids=[1 << 70, EOS]), "holds 1180591620717411303424, which is none"),
    "tokens in tokens": (first(token_ids=[[70, 71], EOS]), "holds a list, which is none"),
    "a text of tokens": (first(token_ids="70"), "no list of tokens but of type str"),
    "tokens are null": (first(token_ids=None), "no list of tokens but of type NoneType"),
    "an end token inside": (first(token_ids=[70, EOS, 71, EOS]), "goes on after the end-of-answer token 2"),
    "an end token inside a long answer": (
        first(token_ids=[EOS, *[70] * (LIMIT - 1)], finish_reason="length"),
        "goes on after the end-of-answer token 2",
    ),
    "an end that is none": (first(token_ids=[70, 71], finish_reason="stop"), "2 tokens ended with 'stop', neither"),
    "cut short": (first(token_ids=[70, 71], finish_reason="length"), "2 tokens ended with 'length', neither"),
    "too long": (first(token_ids=[70] * 9 + [EOS], finish_reason="stop"), "10 tokens ended with 'stop', neither"),
    "another reason": (first(finish_reason="abort"), "ended with 'abort', neither"),
    "a list of reasons": (first(finish_reason=["stop"]), "ended with a list, neither"),
    "two of one number": (duplicated, "are not numbered 0 to 2, each once"),
    "numbers as text": (first(index="0"), "are not numbered 0 to 2, each once"),
    "a number is false": (first(index=False), "are not numbered 0 to 2, each once"),
    "a number too far": (first(index=3), "are not numbered 0 to 2, each once"),
    "one answer too few": (lambda reply: reply.data["choices"].pop() and None, "2 answers came where 3 were asked for"),
    "one answer too many": (
        lambda reply: reply.data["choices"].append({**reply.choice, "index": 3}),
        "4 answers came where 3 were asked for",
    ),
    "answers to another prompt": (first(prompt_token_ids=[5, 6, 7]), "the answers are to another prompt"),
    "another model": (changed(model="other"), "the answers are of model 'other'"),
    "a hostile model": (changed(model=HOSTILE), "the answers are of model '\\x1b[2J"),
    "a hostile reason": (first(finish_reason=HOSTILE), "ended with"),
    "no answers": (changed(choices=None), "unusable response (TypeError"),
    "answers as text": (changed(choices="abc"), "unusable response (TypeError"),
    "a list": (body(b"[1, 2]"), "unusable response (TypeError"),
    "an empty body": (body(b""), "no whole JSON came"),
    "half a JSON": (body(b'{"model": "m", "choi'), "no whole JSON came"),
    "no text": (body(b'{"model": "\xff\xfe"}'), "no whole JSON came"),
    "brackets without end": (body(b"[" * 200_000), "no whole JSON came"),
    "nested objects": (body(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "no whole JSON came"),
    "a number without end": (body(b'{"model": ' + b"9" * 5000 + b"}"), "no whole JSON came"),
    "compressed": (body(gzip.compress(b" " * (64 << 20)), Content_Encoding="gzip"), "no whole JSON came"),
    "more than was said": (
        lambda r: r.send(b"{}" * 40, told=2) and dropped(r),
        "unusable response (KeyError: 'model')",
    ),
    "less than was said": (lambda r: r.send(b"{}", told=99) and dropped(r), "RemoteProtocolError"),
    "dropped": (dropped, "RemoteProtocolError"),
    "no HTTP": (lambda r: r.send_raw(b"SSH-2.0-OpenSSH_9.2 " + KEY.encode() + b"\r\n"), "RemoteProtocolError"),
    "a hostile status line": (
        lambda r: r.send_raw(b"HTTP/1.1 500 \x1b[31m" + KEY.encode() + b"\r\nContent-Length: 0\r\n\r\n"),
        "says 500: \\u001b[31m***",
    ),
    "headers without end": (lambda r: r.send_raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000), "RemoteProtocolError"),
    "endless": (endless, "the response has more than 4"),
    "the key in a status line": (
        lambda r: r.send_raw(f"HTTP/1.1 500 no {KEY}\r\nContent-Length: 0\r\n\r\n".encode()),
        "says 500: no ***",
    ),
    "a hostile error": (
        body(json.dumps({"error": {"message": HOSTILE}}).encode(), 500),
        "says 500: \\u001b[2J\\u009b31m",
    ),
    "a hostile page": (body(f"<h1>{KEY * 200}</h1>".encode(), 502), "says 502: <h1>***"),
    "a deep error": (body(b'{"error": ' * 3000 + b"1", 500), 'says 500: {"error":'),
    "too busy for ever": (lambda reply: 429, "says 429: is 429"),
    "unwilling": (lambda reply: 503, "says 503: is 503"),
    "no key": (body(json.dumps({"error": f"{KEY} is wrong"}).encode(), 401), "says 401: *** is wrong: put its API key"),
    "another place": (body(b"", 307, Location="/v1/completions"), "most rows were refused"),
    "a status of its own": (body(b"", 799), "says 799"),
}
SLOW = {
    "drop by drop": (drip, "no whole response within 0.5 s"),
    "silent": (silent, "no whole response within 0.5 s"),
}


def answer(asked, number):
    """Return an answer that depends on the seed alone, as vLLM's do."""
    length = 2 + (asked["seed"] + number) % 5  # 6, and so at the limit, at times
    ids = [4 + (asked["seed"] // 7 ** (at + 1) + 31 * number) % 256 for at in range(length)]
    return ids if length == LIMIT else [*ids, EOS]


@pytest.fixture(scope="module")
def start(model):
    """A function that starts a server, and returns it with a function that selects through it."""
    source = Source.configured(ADGConfig(model=str(model)))
    backbone = source.load()
    source = replace(source, load=lambda: backbone)
    probe = Probe.of(backbone.model, source.tokenizer)
    started = []

    def start(folder):
        server = StandIn(model=str(model), answer=answer, probe=probe)
        started.append(server)
        pool = write_jsonl(folder / "pool.jsonl", pool_rows(5))
        settings = {"model": str(model), "datasets": [str(pool)], "budget": 3, "num_samples": 3}
        settings |= {"max_new_tokens": LIMIT, "engine": "vllm-server", "server_urls": [server.url]}

        def select(timeout_s=60, **changes):
            config = ADGConfig.parse({**settings, "server_timeout_s": timeout_s, **changes})
            return run_selection(Pool.of(config), config, folder / "run", source=source, show_progress=False)

        return server, select

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADG_SERVER_API_KEY", KEY)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(vllm_server, "_WAIT_S", (0.001, 0.01))
        yield start
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """What a server in order leaves."""
    _, select = start(tmp_path_factory.mktemp("whole"))
    return contents(select())


def contents(selection):
    run = RunFolder.read(selection.run_dir)
    assert run.damage == []
    rows = {r.id: [(a.token_ids.tolist(), a.text, a.finish_reason) for a in r.answers] for r in run.results()}
    assert len(rows) == 5
    return rows, selection.ids, selection.manifest["rows"]


def assert_harmless(text):
    """Nothing of the key is in a text, nor anything that drives a terminal."""
    assert visible(text) == text
    bare = text.lower().replace(" ", "")
    assert not any(KEY.lower()[at : at + 8] in bare for at in range(len(KEY) - 7))


def refused(select, caplog, timeout_s):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ADGError) as caught:
        select(timeout_s)
    assert caught.value.exit_code in (2, 6)
    assert len(str(caught.value)) < 1000
    err = caught.value
    while err is not None:  # the causes are shown with a traceback
        assert_harmless(err.args[0])
        err = err.__cause__ or (None if err.__suppress_context__ else err.__context__)
    assert_harmless(caplog.text)
    return str(caught.value)


@pytest.mark.parametrize("kind", [*WRONG, *SLOW])
def test_it_ends_with_a_clear_error_and_goes_on_when_the_server_is_in_order(
    kind, start, whole, tmp_path, monkeypatch, caplog
):
    fault, said = (WRONG | SLOW)[kind]
    server, select = start(tmp_path)
    server.fault = lambda reply: fault(reply) if reply.is_answer else None
    with monkeypatch.context() as patch:
        patch.setattr(vllm_server.ServerSampler, "_out_of_patience", lambda self, state: state.attempt_number >= 3)
        text = refused(select, caplog, timeout_s=0.5 if kind in SLOW else 60)
    assert said in text
    server.fault = lambda reply: None
    assert contents(select()) == whole


def test_what_happens_once_costs_nothing_but_time(start, whole, tmp_path, caplog):
    server, select = start(tmp_path)
    faults = [WRONG[kind][0] for kind in WRONG if kind not in ("no key", "another place")] + [reordered]
    left = iter(faults)
    server.fault = lambda reply: next(left, lambda reply: None)(reply) if reply.is_answer else None
    assert contents(select()) == whole
    assert next(left, None) is None
    assert_harmless(caplog.text)


# What a server says when it is asked for its model -> what is said.
UNFIT = {
    "no JSON": (body(b"[" * 9999), "cannot be used (URL/v1/models: no whole JSON came): start it with `vllm serve`"),
    "a list": (body(b"[]"), "does not respond as vLLM does (TypeError"),
    "no models": (changed(data=None), "does not respond as vLLM does (TypeError"),
    "models as text": (changed(data=["m"]), "does not respond as vLLM does (TypeError"),
    "a number for a name": (changed(data=[{"id": 7, "root": 7}]), "has ; start it with that model"),
    "a hostile name": (changed(data=[{"id": HOSTILE}]), "has \\u001b[2J"),
    "many models": (changed(data=[{"id": "x" * 99}] * 999), "xxx…; start it with that model"),
    "endless": (endless, "cannot be used (URL/v1/models: the response has more than 4"),
}
UNFIT_TOKENS = {
    "tokens are a number": (changed(tokens=7), "does not respond as vLLM does (TypeError"),
    "hostile tokens": (changed(tokens=[HOSTILE]), "another tokenizer: token 0 of a test text is ['\\x1b[2J"),
    "nested tokens": (body(b'{"tokens": [' + b"[" * 900 + b"]" * 900 + b"]}"), "token 0 of a test text is [[["),
}
UNFIT_WEIGHTS = {
    "no choices": (changed(choices=[]), "does not respond as vLLM does (IndexError"),
    "choices are lists": (changed(choices=[[1]]), "does not respond as vLLM does (AttributeError"),
    "no log-probabilities": (first(prompt_logprobs=None), "does not respond as vLLM does (TypeError"),
    "too few": (first(prompt_logprobs=[None]), "does not respond as vLLM does (ValueError"),
    "not a number": (lambda r: log_probabilities(r, float("nan")), "has other weights than model"),
    "a huge number": (lambda r: log_probabilities(r, 10**400), "does not respond as vLLM does (OverflowError"),
    "hostile": (lambda r: log_probabilities(r, HOSTILE), "could not convert string to float: '\\x1b[2J"),
    "nested": (lambda r: log_probabilities(r, [[1.0]]), "does not respond as vLLM does (ValueError"),
}


def log_probabilities(reply, value):
    entry = next(iter(reply.choice["prompt_logprobs"][5].values()))
    entry["logprob"] = value


@pytest.mark.parametrize(
    ("path", "kinds", "kind"),
    [
        (path, kinds, kind)
        for path, kinds in (("/v1/models", UNFIT), ("/tokenize", UNFIT_TOKENS), ("/v1/completions", UNFIT_WEIGHTS))
        for kind in kinds
    ],
)
def test_a_server_that_says_nonsense_about_its_model_is_refused(path, kinds, kind, start, tmp_path, caplog):
    fault, said = kinds[kind]
    server, select = start(tmp_path)
    server.fault = lambda reply: fault(reply) if reply.path == path else None
    text = refused(select, caplog, timeout_s=60)
    assert said.replace("URL", server.url) in text
    assert server.asked == 0


def poison(folder):
    """Give two rows answers that no model of ours can have given, as older versions took them, and return the part."""
    [path] = folder.glob("part-*.parquet")
    rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    rows[1]["answers"][2]["token_ids"] = [70, VOCABULARY]
    rows[3]["answers"][0]["token_ids"] = [EOS, 70]
    path.unlink()
    return write_part(folder, 0, pa.Table.from_pylist(rows, SCHEMA)).path


@pytest.mark.parametrize("stage", ["samples", "answers"])
def test_stored_answers_that_cannot_be_are_sampled_again(stage, start, whole, tmp_path, caplog):
    server, select = start(tmp_path)
    folder = tmp_path / "run" / stage
    select()
    (tmp_path / "run" / "answers").rename(folder)  # as of a run that was cut off before it embedded them
    part = poison(folder)
    asked = server.asked
    assert contents(select()) == whole
    assert server.asked == asked + 2
    assert "2 rows had answers that the model cannot have given (a token beyond its vocabulary, or an" in caplog.text
    assert not part.exists()
    caplog.clear()
    assert contents(select()) == whole
    assert not caplog.text


def test_answers_of_other_settings_stay_whatever_they_are(start, tmp_path):
    """They are another model's, whose vocabulary and end tokens nobody knows here."""
    _, select = start(tmp_path)
    select()
    part = poison(tmp_path / "run" / "answers")
    before = part.read_bytes()
    select(seed=7)
    assert part.read_bytes() == before
