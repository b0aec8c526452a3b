"""A sandbox server as client: verdicts where it gives one, `broken` where it does not. The server is played here."""

import base64
import json
import re
import socket
import sys
import threading
import time
from typing import Any

import pytest

from rlhf.errors import ConfigError, SandboxError
from rlhf.sandbox import remote
from rlhf.sandbox.client import Sandbox, default_sandbox, set_default_policy
from rlhf.sandbox.execution import Limits, Program
from rlhf.sandbox.policy import Policy
from rlhf.sandbox.remote import RemoteSandbox
from rlhf.sandbox.session import Session
from tests.unit.sandbox.servers import Reply, fusion, server

SHORT = Limits(cpu_s=0.5, wall_s=2, memory_mb=300, output_kb=1)


def run(reply: Reply, program: Program | None = None, limits: Limits = SHORT) -> Any:
    with server(reply) as url:
        return RemoteSandbox(url).run(program or Program(code="print(1)"), limits=limits)


def test_fusion_is_asked_for_what_was_wanted():
    asked: list[tuple[str, dict[str, Any]]] = []

    def reply(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        asked.append((path, body))
        return fusion(stdout="1\n")(path, body)

    program = Program(code="print(1)", stdin="grüße".encode(), files={"a/b": b"\xff"}, collect=("out",))
    assert run(reply, program).stdout == b"1\n"
    path, body = asked[0]
    assert path == "/run_code"
    assert (body["language"], body["code"], body["stdin"]) == ("python", "print(1)", "grüße")
    assert body["files"] == {"a/b": base64.b64encode(b"\xff").decode()}
    assert body["fetch_files"] == ["out"]
    assert (body["run_timeout"], body["memory_limit_MB"]) == (2, 300)
    run(reply, Program(argv=(sys.executable, "a b", "$x"), files={"-f": b""}, limits_address_space=False))
    assert asked[1][1]["language"] == "bash"
    assert asked[1][1]["code"] == "chmod +x -- -f\nexec python3 'a b' '$x'\n"
    assert asked[1][1]["memory_limit_MB"] == -1


def test_fusion_verdicts_are_taken_as_given():
    done = run(fusion(stdout="ä", stderr="e"))
    assert (done.status, done.exit_code, done.stdout, done.stderr) == ("exited", 0, "ä".encode(), b"e")
    assert (done.tier, done.wall_s, done.cpu_s) == ("remote", 0.25, 0.25)
    assert done.succeeded
    failed = run(fusion("Failed", return_code=3))
    assert (failed.status, failed.exit_code) == ("exited", 3)
    killed = run(fusion("Failed", return_code=-9))
    assert (killed.status, killed.signal, killed.exit_code) == ("signalled", 9, None)
    late = run(fusion("Failed", status="TimeLimitExceeded", return_code=None, stdout="so far"))
    assert (late.status, late.exit_code, late.stdout) == ("wall_limit", None, b"so far")


def test_fusion_gives_files_back():
    def reply(_path: str, _body: dict[str, Any]) -> tuple[int, bytes]:
        answer = json.loads(fusion()("", {})[1]) | {"files": {"out": base64.b64encode(b"\x00x").decode()}}
        return 200, json.dumps(answer).encode()

    assert run(reply, Program(code="pass", collect=("out",))).files == {"out": b"\x00x"}


def test_program_that_did_not_compile_has_a_verdict():
    compiled = {"status": "Finished", "return_code": 1, "stderr": "no", "stdout": "", "execution_time": 1.0}
    answer = {"status": "Failed", "message": "", "compile_result": compiled, "run_result": None}
    done = run(lambda *_: (200, json.dumps(answer).encode()))
    assert (done.status, done.exit_code, done.stderr) == ("exited", 1, b"no")


def test_output_is_cut_at_our_limit():
    done = run(fusion(stdout="x" * 900, stderr="y" * 900))
    assert (done.status, done.truncated, len(done.stdout), len(done.stderr)) == (
        "output_limit",
        True,
        900,
        124,
    )


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        pytest.param(lambda *_: (500, b"out of pods"), "HTTP 500 .*: out of pods", id="500"),
        pytest.param(lambda *_: (429, b"slow down"), "HTTP 429", id="429"),
        pytest.param(lambda *_: (404, b""), "HTTP 404", id="another server"),
        pytest.param(lambda *_: (200, b"<html>"), "expected a JSON object, found b'<html>'", id="garbage"),
        pytest.param(lambda *_: (200, b"[1]"), "expected a JSON object", id="list"),
        pytest.param(lambda *_: (200, b"{}"), "expected the answer of run_code", id="nothing"),
        pytest.param(fusion("SandboxError"), "its sandbox failed", id="its own failure"),
        pytest.param(fusion(status="Error"), "did not run the program", id="runner's failure"),
        pytest.param(fusion(return_code=None), "did not run the program", id="no exit code"),
        pytest.param(fusion(stdout=5), "stdout is '5', expected text", id="number for text"),
        pytest.param(
            lambda *_: (200, json.dumps(json.loads(fusion()("", {})[1]) | {"files": {"a": "?"}}).encode()),
            "expected base64",
            id="broken files",
        ),
    ],
)
def test_failure_of_the_server_is_no_verdict(reply, words):
    done = run(reply)
    assert done.status == "broken"
    assert re.search(words, done.detail), done.detail


def test_refused_connection_is_no_verdict():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = RemoteSandbox(f"http://127.0.0.1:{port}").run(Program(code="pass"))
    assert done.status == "broken"
    assert "refused" in done.detail


def test_connection_that_breaks_off_is_no_verdict():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        done = RemoteSandbox(f"http://127.0.0.1:{listener.getsockname()[1]}").run(Program(code="pass"))
        thread.join()
    assert done.status == "broken"


def test_silence_is_no_verdict(monkeypatch):
    monkeypatch.setattr(remote, "_NET_S", -1.5)

    given_up = threading.Event()

    def reply(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        given_up.wait(60)
        return fusion()(path, body)

    with server(reply) as url:
        done = RemoteSandbox(url).run(Program(code="print(1)"), limits=SHORT)
        given_up.set()
    assert (done.status, done.detail.partition(": ")[2]) == ("broken", "no answer within 0.5 s")


def test_openenv_runs_python():
    asked: list[tuple[str, dict[str, Any]]] = []

    def reply(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        asked.append((path, body))
        observation = {"stdout": "1\n", "stderr": "", "exit_code": 0}
        return 200, json.dumps({"observation": observation, "reward": None, "done": False}).encode()

    with server(reply) as url:
        done = RemoteSandbox(f"openenv+{url}").run(Program(code="print(1)"), limits=SHORT)
        assert (done.status, done.stdout, done.tier) == ("exited", b"1\n", "remote")
        assert done.wall_s > 0
        refused = RemoteSandbox(url, "openenv").run(Program(code="input()", stdin=b"1"))
    assert asked == [("/step", {"action": {"code": "print(1)"}, "timeout_s": 2})]
    assert refused.status == "refused"
    assert "cannot take anything but Python code" in refused.detail


@pytest.mark.parametrize("observation", [None, {}, {"stdout": "1", "stderr": ""}, {"exit_code": "0"}])
def test_openenv_without_an_observation_is_broken(observation):
    with server(lambda *_: (200, json.dumps({"observation": observation}).encode())) as url:
        assert RemoteSandbox(url, "openenv").run(Program(code="pass")).status == "broken"


def test_input_that_json_cannot_carry_is_refused():
    done = run(fusion(), Program(code="pass", stdin=b"\xff"))
    assert (done.status, "not UTF-8" in done.detail) == ("refused", True)


def test_places_on_the_server_are_limited():
    running, most = [], []

    def reply(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        return fusion()(path, body)

    with server(reply) as url:
        sandbox = RemoteSandbox(url, max_jobs=2)
        done: list[Any] = []
        threads = [
            threading.Thread(target=lambda: done.append(sandbox.run(Program(code="1")))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(most) <= 2
    assert max(execution.queue_s for execution in done) > 0.05
    assert all(execution.wall_s == 0.25 for execution in done)


def test_policy_sends_everything_to_the_server():
    with server(fusion(stdout="there\n")) as url:
        with Sandbox(Policy(remote=url)) as sandbox:
            assert sandbox.tier == "remote"
            assert sandbox.run(Program(code="print('here')")).stdout == b"there\n"
            for needs_more in (
                lambda: sandbox.start(Program(code="pass"), channel=True),
                lambda: Session(sandbox),
            ):
                with pytest.raises(SandboxError, match=r"runs whole programs only.*session or a channel"):
                    needs_more()
        set_default_policy(Policy(remote=url))
        try:
            assert default_sandbox().run(Program(code="print('here')")).tier == "remote"
        finally:
            set_default_policy(Policy())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"remote": "localhost:8080"}, "sandbox.remote is 'localhost:8080', expected a URL"),
        ({"remote": "http://a", "tier": "landlock"}, "sandbox.tier and sandbox.remote are both set"),
        (
            {"remote": "http://a", "python": "/usr/bin/python3"},
            "sandbox.python and sandbox.remote are both set",
        ),
    ],
)
def test_policy_that_a_server_cannot_keep_is_refused(keys, words):
    with pytest.raises(ConfigError, match=words):
        Policy(**keys)


def test_address_without_a_scheme_is_refused():
    with pytest.raises(SandboxError, match=r"expected one of http://"):
        RemoteSandbox("localhost:8080")
