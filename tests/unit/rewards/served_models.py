"""A real HTTP server that plays a served model: what it answers is a function of the request."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Texts = dict[str, str]


@dataclass(slots=True)
class Served:
    """A running server: its address, and what it was asked."""

    address: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def endpoint(self, **settings: Any) -> dict[str, Any]:
        """Settings of an endpoint of this server."""
        return {"url": f"{self.address}/v1", "model": "judge", "timeout_s": 5.0, **settings}


@dataclass(frozen=True, slots=True)
class Raw:
    """A reply that is not a plain 200 with JSON."""

    status: int = 200
    body: bytes = b""
    location: str = ""


@contextmanager
def served(answer: Callable[[dict[str, Any]], dict[str, Any] | Raw]) -> Iterator[Served]:
    """Serve `answer(request body)` on a free port; a raised ConnectionError closes the connection."""

    class Play(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append(body)
            state.paths.append(self.path)
            state.headers.append(dict(self.headers))
            try:
                found = answer(body)
            except ConnectionError:
                self.close_connection = True
                return
            raw = found if isinstance(found, Raw) else Raw(body=json.dumps(found).encode())
            self.send_response(raw.status)
            if raw.location:
                self.send_header("Location", raw.location)
            self.send_header("Content-Length", str(len(raw.body)))
            self.end_headers()
            self.wfile.write(raw.body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Play)
    state = Served(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def judge(say: Callable[[Texts], str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A chat model that says `say(the fenced texts, by name)`."""
    return lambda body: chat(say(fenced(body)))


def chat(text: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


def fenced(body: dict[str, Any]) -> Texts:
    """The texts between the tags that the system message names, as an honest judge reads them."""
    system, user = (message["content"] for message in body["messages"])
    mark = re.search(r"tags that end in -(\w+)\.", system)[1]  # type: ignore[index]
    found = re.findall(rf"<([\w-]+)-{mark}>\n(.*?)\n</\1-{mark}>", user, re.DOTALL)
    return dict(found)
