"""A server on the loopback that answers chat completions as a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = tuple[int, str, dict[str, str]]


def said(text: str, *, reason: str = "stop") -> Reply:
    """A chat completion with that text."""
    message = {"role": "assistant", "content": text}
    body = {"choices": [{"message": message, "finish_reason": reason}]}
    return 200, json.dumps(body), {}


def broken(code: int = 500, body: str = "", **headers: str) -> Reply:
    return code, body, {name.replace("_", "-"): h for name, h in headers.items()}


@dataclass
class Asked:
    """What was asked, and how; `now` requests are under way, at once at `most`."""

    bodies: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(
    answers: Callable[[dict, int], Reply], *, seconds: float = 0.0
) -> Iterator[tuple[str, Asked]]:
    """(url, what was asked): `answers(body, how many requests came before)` says what
    comes back, after some `seconds`. A GET finds a list of models."""
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with asked.lock:
                count = len(asked.bodies)
                asked.bodies.append(body)
                asked.headers.append(dict(self.headers))
                asked.now += 1
                asked.most = max(asked.most, asked.now)
            time.sleep(seconds)
            with asked.lock:
                asked.now -= 1
            self._send(*answers(body, count))

        def do_GET(self):
            asked.headers.append(dict(self.headers))
            self._send(200, '{"data": []}', {})

        def _send(self, code, text, headers):
            content = text.encode()
            try:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # whoever asked has stopped waiting, as some tests have it

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
