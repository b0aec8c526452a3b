"""Plays a sandbox server on this machine."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[str, dict[str, Any]], tuple[int, bytes]]


@contextmanager
def server(reply: Reply) -> Iterator[str]:
    """The URL of a server on this machine that answers every POST with what `reply` gives for path and body."""

    class _Play(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content = reply(self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    play = ThreadingHTTPServer(("127.0.0.1", 0), _Play)
    thread = threading.Thread(target=play.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{play.server_port}"
    finally:
        play.shutdown()
        play.server_close()
        thread.join()


def fusion(overall: str = "Success", /, **result: Any) -> Reply:
    """Answers of Sandbox Fusion's `run_code` with this result."""
    run = {
        "status": "Finished",
        "execution_time": 0.25,
        "return_code": 0,
        "stdout": "",
        "stderr": "",
    } | result
    return lambda _path, _body: (
        200,
        json.dumps({"status": overall, "message": "", "run_result": run}).encode(),
    )
