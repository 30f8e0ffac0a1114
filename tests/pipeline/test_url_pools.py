"""Pools behind a URL with a password or a signature: they are read, and the run folder holds neither."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.parquet as pq
import pytest
from tiny_runs import choose, pool_rows

from adg_plugin.errors import DataError

LOGIN = "Basic " + base64.b64encode(b"me:sesame").decode()
FORMS = ["http://me:sesame@{}/pool.jsonl", "http://{}/pool.jsonl?X-Amz-Date=1.2&X-Amz-Signature=sesame"]


class Store(BaseHTTPRequestHandler):
    """Gives a pool to who shows a password or a signature."""

    def do_GET(self):
        known = self.headers.get("Authorization") == LOGIN or "X-Amz-Signature=sesame" in self.path
        lines = "".join(json.dumps(row) + "\n" for row in pool_rows(12)).encode() if known else b""
        self.send_response(200 if known else 403)
        self.send_header("Content-Length", str(len(lines)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(lines)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("form", FORMS)
def test_a_pool_is_read_and_no_file_says_how(form, host, model, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    found = choose(form.format(host), model, tmp_path / "run", budget=4)
    assert len(found.ids) == 4
    assert found.manifest["config"]["datasets"][0]["path"].startswith(f"http://{host}/pool.jsonl")
    for path in (tmp_path / "run").rglob("*"):
        if path.suffix in (".json", ".jsonl"):
            assert "sesame" not in path.read_text(), path
    wheres = pq.read_table(tmp_path / "run" / "prompts.parquet", columns=["where"])["where"].to_pylist()
    assert len(wheres) == 12
    assert not [where for where in wheres if "sesame" in where]


@pytest.mark.parametrize("form", FORMS)
def test_a_refused_url_is_an_error_that_does_not_repeat_it(form, host, model, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match=host) as caught:
        choose(form.format(host).replace("sesame", "guess"), model, tmp_path / "run", budget=4)
    assert "guess" not in str(caught.value)
