"""Programs on a sandbox server instead of this machine: Sandbox Fusion's `run_code`, or OpenEnv's coding environment.

What cannot be learned from the server is `broken`, never a verdict: no connection, no answer in time, an HTTP error,
an answer of another shape.
"""

import base64
import binascii
import http.client
import json
import shlex
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NoReturn, get_args

from rlhf.errors import SandboxError
from rlhf.sandbox.execution import Execution, Limits, Program
from rlhf.sandbox.policy import REMOTE_SCHEMES

Kind = Literal["fusion", "openenv"]
_NET_S = 30.0
"""How much longer than a program's own net the server's answer may take: its queue, its compiler, the way."""
_MAX_ANSWER_BYTES = 256 << 20
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
_NO_CHANNEL = (
    "sandbox.remote: {url} runs whole programs only, and what was asked for needs {what}. "
    "Leave sandbox.remote out to run it on this machine."
)


class _NotAnAnswer(Exception):
    """The server said something that is no verdict."""


class _CannotCarry(Exception):
    """The program has something that this kind of server does not take."""


class RemoteSandbox:
    """A sandbox server, which holds programs in its own way.

    Of the limits it gets the wall net and memory; output is cut here. The server's wall seconds stand for CPU
    seconds, which it does not tell. Thread-safe.
    """

    tier: Literal["remote"] = "remote"

    def __init__(self, url: str, kind: Kind | None = None, *, max_jobs: int = 16) -> None:
        prefix, _, rest = url.rpartition("+")
        self._kind: Kind = kind or ("openenv" if prefix == "openenv" else "fusion")
        self.url = rest.rstrip("/")
        self._places = threading.BoundedSemaphore(max_jobs)
        if self._kind not in get_args(Kind) or not url.startswith(REMOTE_SCHEMES):
            raise SandboxError(
                f"sandbox server {url!r}: expected one of {', '.join(REMOTE_SCHEMES)} and a host."
            )

    def run(self, program: Program, *, limits: Limits | None = None) -> Execution:
        """Run a program to its end on the server; `refused` when this kind of server cannot take it."""
        limits, queued = limits or Limits(), time.monotonic()
        with self._places:
            began = time.monotonic()
            try:
                path, request = _REQUESTS[self._kind](program, limits)
                answer = self._post(path, request, timeout_s=limits.net_s + _NET_S)
                verdict = _VERDICTS[self._kind](answer)
            except _CannotCarry as error:
                verdict = {"status": "refused", "detail": f"{self.url} cannot take {error}"}
            except _NotAnAnswer as error:
                verdict = {"status": "broken", "detail": f"{self.url}: {error}"}
            spent_s = time.monotonic() - began
        wall_s = verdict.pop("wall_s", None)
        wall_s = spent_s if wall_s is None else wall_s
        held = Execution(tier="remote", wall_s=wall_s, cpu_s=wall_s, queue_s=began - queued, **verdict)
        return _within(limits, held)

    def start(self, program: Program, *, limits: Limits | None = None, channel: bool = False) -> NoReturn:
        """SandboxError: a program here has no life that could be followed; `run` it."""
        del program, limits
        raise SandboxError(
            _NO_CHANNEL.format(url=self.url, what="a channel" if channel else "a running program")
        )

    def open_cell(self, limits: Limits) -> NoReturn:
        """SandboxError: the servers have no sessions."""
        del limits
        raise SandboxError(_NO_CHANNEL.format(url=self.url, what="a session or a channel to the program"))

    def close(self) -> None:
        """Nothing to do: no connection outlives its program."""

    def _post(self, path: str, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """The server's answer as an object, or _NotAnAnswer."""
        body = json.dumps(request).encode()
        call = urllib.request.Request(f"{self.url}{path}", data=body, headers=_HEADERS, method="POST")
        try:
            with urllib.request.urlopen(call, timeout=timeout_s) as response:
                text = response.read(_MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace")
            raise _NotAnAnswer(f"HTTP {error.code} {error.reason}: {said}") from error
        except TimeoutError as error:
            raise _NotAnAnswer(f"no answer within {timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _NotAnAnswer(f"{type(error).__name__}: {error}") from error
        try:
            answer = json.loads(text) if len(text) <= _MAX_ANSWER_BYTES else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise _NotAnAnswer(f"expected a JSON object, found {text[:100]!r}")
        return answer


def _fusion_request(program: Program, limits: Limits) -> tuple[str, dict[str, Any]]:
    files = {name: base64.b64encode(content).decode() for name, content in program.files.items()}
    try:
        stdin = program.stdin.decode()
    except UnicodeDecodeError as error:
        raise _CannotCarry("standard input that is not UTF-8") from error
    return "/run_code", {
        "language": "python" if program.code else "bash",
        "code": program.code or _script(program),
        "stdin": stdin,
        "files": files,
        "fetch_files": list(program.collect),
        "run_timeout": limits.net_s,
        "compile_timeout": limits.net_s,
        "memory_limit_MB": limits.memory_mb if program.limits_address_space else -1,
    }


def _script(program: Program) -> str:
    """The argv for a shell on another machine; this machine's interpreter stands for that one's."""
    words = ["python3" if word == sys.executable else word for word in program.argv]
    prepare = f"chmod +x -- {shlex.join(program.files)}\n" if program.files else ""
    return f"{prepare}exec {shlex.join(words)}\n"


def _fusion_verdict(answer: Mapping[str, Any]) -> dict[str, Any]:
    status = answer.get("status")
    if status == "SandboxError":
        raise _NotAnAnswer(f"its sandbox failed: {str(answer.get('message'))[:300]}")
    result = answer.get("run_result") or answer.get("compile_result")
    if status not in ("Success", "Failed") or not isinstance(result, dict):
        raise _NotAnAnswer(f"expected the answer of run_code, found {str(dict(answer))[:300]}")
    verdict = _ended(result, code_key="return_code")
    verdict["wall_s"] = _number(result, "execution_time")
    verdict["files"] = _files(answer.get("files") or {})
    if result.get("status") == "TimeLimitExceeded":
        detail = "the server ended it at its wall limit"
        return {**verdict, "status": "wall_limit", "exit_code": None, "signal": None, "detail": detail}
    if result.get("status") != "Finished" or verdict["status"] == "broken":
        raise _NotAnAnswer(f"it did not run the program: {str(result)[:300]}")
    return verdict


def _openenv_request(program: Program, limits: Limits) -> tuple[str, dict[str, Any]]:
    if not program.code or program.stdin or program.files or program.collect:
        raise _CannotCarry("anything but Python code: no command, input or files")
    return "/step", {"action": {"code": program.code}, "timeout_s": limits.net_s}


def _openenv_verdict(answer: Mapping[str, Any]) -> dict[str, Any]:
    observation = answer.get("observation")
    if not isinstance(observation, dict):
        raise _NotAnAnswer(f"expected an observation, found {str(dict(answer))[:300]}")
    verdict = _ended(observation, code_key="exit_code")
    if verdict["status"] == "broken":
        raise _NotAnAnswer(f"expected stdout, stderr and exit_code, found {str(observation)[:300]}")
    return verdict


def _ended(result: Mapping[str, Any], *, code_key: str) -> dict[str, Any]:
    """Exit code and streams; `broken` without an exit code."""
    code = result.get(code_key)
    streams = {name: _bytes(result, name) for name in ("stdout", "stderr")}
    if not isinstance(code, int):
        return {**streams, "status": "broken"}
    if code < 0:
        return {**streams, "status": "signalled", "signal": -code}
    return {**streams, "status": "exited", "exit_code": code}


def _bytes(result: Mapping[str, Any], name: str) -> bytes:
    text = result.get(name) or ""
    if not isinstance(text, str):
        raise _NotAnAnswer(f"{name} is {str(text)[:100]!r}, expected text")
    return text.encode(errors="surrogateescape")


def _number(result: Mapping[str, Any], name: str) -> float | None:
    value = result.get(name)
    return float(value) if isinstance(value, int | float) else None


def _files(found: object) -> dict[str, bytes]:
    try:
        assert isinstance(found, dict)
        return {str(name): base64.b64decode(content, validate=True) for name, content in found.items()}
    except (AssertionError, TypeError, binascii.Error) as error:
        raise _NotAnAnswer(f"files are {str(found)[:100]!r}, expected base64 by name") from error


def _within(limits: Limits, held: Execution) -> Execution:
    """The same, its output cut at our limit."""
    room = limits.output_kb << 10
    if len(held.stdout) + len(held.stderr) <= room or held.status == "broken":
        return held
    stdout = held.stdout[:room]
    return replace(
        held,
        status="output_limit",
        exit_code=None,
        signal=None,
        stdout=stdout,
        stderr=held.stderr[: room - len(stdout)],
        truncated=True,
        detail=f"more than {limits.output_kb} kB of output",
    )


_REQUESTS = {"fusion": _fusion_request, "openenv": _openenv_request}
_VERDICTS = {"fusion": _fusion_verdict, "openenv": _openenv_verdict}
