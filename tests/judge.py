"""A judge on this machine: a real HTTP server that speaks OpenAI's chat protocol, with scripted behaviours."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Act:
    """What the server does with one request."""

    text: str | None = "Rating: [[7]]"
    """Of the judgment; None: ``body`` is sent as it is."""
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False
    """Close the connection without a word."""
    wait: threading.Event | None = None
    """Say nothing until this is set."""


Script = Callable[[int, dict[str, Any]], Act]
"""``script(number of the request, its body) -> what to do``; numbers start at 0."""


class ServedJudge:
    """The server and what it was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paid: Counter[str] = Counter()
        """How often each prompt got a judgment."""
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers) | {"path": self.path})
                act = outer.script(number, body)
                if act.wait is not None:
                    act.wait.wait(30)
                    return
                if act.hang_up:
                    self.close_connection = True
                    return
                data = act.body
                if act.text is not None and act.status == 200:
                    data = json.dumps(
                        {
                            "model": f"{body['model']}-0613",
                            "choices": [{"index": 0, "message": {"role": "assistant", "content": act.text}}],
                        }
                    ).encode()
                    with outer._lock:
                        outer.paid[body["messages"][-1]["content"]] += 1
                self.send_response(act.status)
                for name, value in act.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with suppress(ConnectionError):  # the judge may have heard enough
                    self.wfile.write(data)

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> ServedJudge:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def served(script: Script | Act) -> Iterator[ServedJudge]:
    """Serve a script, or the same act for ever."""
    with ServedJudge(script if callable(script) else lambda number, body: script) as judge:
        yield judge
