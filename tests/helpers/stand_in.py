"""A small server that speaks as vLLM does, and misbehaves as it is told; it ends with the process."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiny_models import EOS


@dataclass
class Reply:
    """What a stand-in is about to send.

    Attributes:
        path: that was asked.
        body: of the request; None of a GET.
        data: the response, to be changed in place.
        handler: of the connection, for a fault that sends something itself.
    """

    path: str
    body: Any
    data: dict[str, Any]
    handler: http.server.BaseHTTPRequestHandler

    @property
    def choice(self) -> dict[str, Any]:
        """The first answer."""
        return self.data["choices"][0]

    @property
    def is_answer(self) -> bool:
        """Whether answers to a row are asked for, not what tells models apart."""
        return self.path == "/v1/completions" and "prompt_logprobs" not in self.body

    def send(self, body: bytes, status: int = 200, *, told: int | None = None, **headers: str) -> bool:
        """Send a response whose header tells `told` bytes, by default as many as there are, and return True."""
        self.handler.send_response(status)
        self.handler.send_header("Content-Length", str(len(body) if told is None else told))
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(body)
        return True

    def send_raw(self, data: bytes) -> bool:
        """Send bytes that need be no HTTP, close the connection, and return True."""
        self.handler.wfile.write(data)
        self.handler.close_connection = True
        return True


Fault = Callable[[Reply], object]


def two_tokens(body: dict[str, Any], number: int) -> list[int]:
    """Return the same short answer, however often it is asked for."""
    return [70, 71, EOS]


class StandIn:
    """Answers as a server of `model` does.

    Args:
        fault: given each reply; it changes what is in it, returns a status in its place, or True where it has sent
            something itself.
        model: the name it gives its model.
        answer: the tokens of each answer to a request.
        probe: with its log-probabilities, the check of its model passes.
    """

    def __init__(
        self,
        fault: Fault = lambda reply: None,
        *,
        model: str = "m",
        answer: Callable[[dict[str, Any], int], list[int]] = two_tokens,
        probe: Any = None,
    ) -> None:
        self.fault, self._model, self._answer, self._probe = fault, model, answer, probe
        self.asked = 0
        self.headers: list[str | None] = []
        self.bodies: list[Any] = []
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def respond(self) -> None:
                size_bytes = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size_bytes)) if size_bytes else None
                reply = Reply(self.path, body, stand_in.response(self.path, body), self)
                if reply.is_answer:
                    stand_in.asked += 1
                    stand_in.headers.append(self.headers.get("Authorization"))
                    stand_in.bodies.append(body)
                try:
                    found = stand_in.fault(reply)
                    if found is not True:
                        data = reply.data if found is None else {"error": {"message": f"is {found}"}}
                        reply.send(json.dumps(data).encode(), found if isinstance(found, int) else 200)
                except OSError:
                    self.close_connection = True  # whoever asked has hung up

            do_GET = do_POST = respond  # noqa: N815

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *of: None  # type: ignore[method-assign]  # whoever asked has hung up
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def response(self, path: str, body: Any) -> dict[str, Any]:
        """Return what a server in order responds."""
        if path == "/v1/models":
            return {"data": [{"id": self._model, "max_model_len": 4096}]}
        if path == "/tokenize":
            return {"tokens": self._probe.token_ids.tolist()}
        if "prompt_logprobs" in body:
            found = zip(self._probe.token_ids[1:].tolist(), self._probe.logprobs.tolist(), strict=True)
            about = [None, *({str(token): {"logprob": logprob}} for token, logprob in found)]
            return {"model": self._model, "choices": [{"index": 0, "token_ids": [70], "prompt_logprobs": about}]}
        answers = [self._answer(body, number) for number in range(body["n"])]
        choices = [
            {
                "index": number,
                "token_ids": ids,
                "finish_reason": "stop" if ids[-1] == EOS else "length",
                "prompt_token_ids": body["prompt"],
            }
            for number, ids in enumerate(answers)
        ]
        return {"model": self._model, "choices": choices}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
