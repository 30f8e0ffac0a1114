"""Real vLLM servers, a proxy that breaks what goes through it, and selections by them. Only where vLLM is installed."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tiny_runs import write_jsonl

API_KEY = "key-of-the-test"
# In bfloat16 an answer may depend on what shares vLLM's batch (on processors with AMX it does, as on GPUs).
SETTINGS = {"model": "demo", "dtype": "float32", "num_samples": 3, "max_new_tokens": 12, "budget": 8}
VLLM_OPTIONS = {"max_num_seqs": 64, "kv_cache_memory_bytes": 1 << 30}
_WORDS = (
    "river bread piano window garden engine letter winter market silver story island doctor forest camera bridge "
    "planet coffee mirror castle rocket harbour lemon pencil thunder violin desert candle ladder feather"
)
WORDS = _WORDS.split()


def environment() -> dict[str, str]:
    """Return what vLLM needs on a machine with two cores."""
    quiet = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING", "OMP_NUM_THREADS": "2"}
    # A server and the encoder beside it share two cores: threads that wait by spinning would keep each other from work.
    quiet |= {"OMP_WAIT_POLICY": "passive"}
    return {**os.environ, **quiet, "ADG_SERVER_API_KEY": API_KEY, "NO_PROXY": "127.0.0.1"}


def write_config(folder: Path, rows: int = 30, **settings: Any) -> Path:
    """Write a pool and a configuration, and return the configuration's path."""
    folder.mkdir(exist_ok=True)
    texts = ("What is a {}?", "Write one line about a {}.", "Is a {} heavier than a {}?")
    pool = [
        {"id": f"row-{n}", "instruction": texts[n % 3].format(WORDS[n % 30], WORDS[n * 7 % 30]), "output": "x"}
        for n in range(rows)
    ]
    data = {**SETTINGS, "datasets": [str(write_jsonl(folder / "pool.jsonl", pool))], **settings}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def adg(*arguments: object, python: str = sys.executable, ranks: int = 1) -> subprocess.Popen[str]:
    """Start `adg`, under torchrun where there are several ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [python, *launcher, "-m", "adg_plugin", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment())


def finish(process: subprocess.Popen[str]) -> str:
    """Return the last line of a command that is to succeed."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return out.splitlines()[-1]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class VLLMServer:
    """`vllm serve` of the demo model, by its own process."""

    def __init__(self, model: Path, log: Path) -> None:
        self.port, self._model, self._log = free_port(), model, log
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        # `vllm serve` asks for the metadata of a distribution of that name, which the CPU build lacks.
        options = "--dtype float32 --max-model-len 1280 --enforce-eager --max-num-seqs 64 --max-num-batched-tokens 2048"
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--model", str(self._model), "--api-key", API_KEY, *options.split()]
        command += ["--no-enable-chunked-prefill", "--kv-cache-memory-bytes", str(1 << 30)]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)

    def wait(self) -> None:
        """Return when it responds."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(self._log.read_text()[-3000:])

    def kill(self) -> None:
        """End it and its engine with SIGKILL."""
        os.killpg(self._process.pid, 9)
        self._process.wait()


class Proxy:
    """Forwards to a server; `disturb` may take over the response, of the checks at the start only if `everywhere`.

    Attributes:
        completions: requests for answers that came through whole.
    """

    def __init__(
        self, upstream: int, disturb: Callable[[Any, bytes], bool] | None = None, *, everywhere: bool = False
    ) -> None:
        proxy = self
        self.completions = 0
        self.disturbed: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=300)
                    names = ("Authorization", "Content-Type")
                    headers = {name: self.headers[name] for name in names if name in self.headers}
                    connection.request(self.command, self.path, body, headers)
                    response = connection.getresponse()
                    data = response.read()
                except (OSError, http.client.HTTPException):
                    self.close_connection = True  # as the server did
                    return
                is_answer = self.path == "/v1/completions" and (everywhere or b"prompt_logprobs" not in body)
                if is_answer and disturb is not None and disturb(self, data):
                    return
                proxy.completions += is_answer and response.status == 200
                self.respond(response.status, data)

            do_GET = do_POST = forward  # noqa: N815

            def respond(self, status: int, data: bytes, *, told: int | None = None) -> None:
                """Send a response whose header tells `told` bytes, by default as many as there are."""
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data) if told is None else told))
                self.end_headers()
                self.wfile.write(data)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def chaos(seed: int, happened: list[str]) -> Callable[[Any, bytes], bool]:
    """Return what disturbs half of all answers, each in one of several ways."""
    dice = random.Random(seed)

    def disturb(handler: Any, data: bytes) -> bool:
        kind = dice.choice(["503", "429", "500", "dropped", "cut short", "half a JSON", "", "", "", "", "", ""])
        if kind:
            happened.append(kind)
        if kind.isdigit():
            handler.respond(int(kind), b'{"error": {"message": "disturbed"}}')
        elif kind == "dropped":
            handler.close_connection = True
        elif kind == "cut short":
            handler.respond(200, data[: len(data) // 2], told=len(data))
            handler.close_connection = True
        elif kind == "half a JSON":
            handler.respond(200, data[: len(data) // 2])
        return bool(kind)

    return disturb


def without_token_ids(handler: Any, data: bytes) -> bool:
    body = json.loads(data)
    for choice in body["choices"]:
        choice.pop("token_ids")
    handler.respond(200, json.dumps(body).encode())
    return True
