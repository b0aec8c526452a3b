"""A sandbox that stays: an agent's shell or Python interpreter, step by step, each step within its own limits."""

import selectors
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Literal

from rlhf.errors import SandboxError
from rlhf.sandbox import wire
from rlhf.sandbox.client import Job, Sandbox
from rlhf.sandbox.execution import Execution, Limits, Program, check_names

Kind = Literal["shell", "python"]
_ANSWER_S = 10.0
"""Longest wait for the rest of an answer that has begun."""
_NET_S = 30.0
_HEAD = struct.Struct(">II")
_REPLY = struct.Struct(">IBB")
_STATE = '"$HOME"/.session'

# The working directory and exported variables outlive a step, also one that calls `exit`.
_SHELL = """\
mkdir -p {state} && [ -e {state}/exports ] && . {state}/exports
cd "$(cat {state}/folder 2>/dev/null || pwd)" 2>/dev/null
trap 'pwd > {state}/folder; export -p > {state}/exports' EXIT
{command}
"""

_INTERPRETER = r"""
import ast, builtins, contextlib, io, os, signal, socket, struct, sys, traceback

def serve(channel):
    out = os.open(".output", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
    os.unlink(".output")
    os.dup2(out, 1)
    os.dup2(out, 2)
    names = {"__name__": "__main__", "__builtins__": builtins}
    while True:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        head = read(channel, 8)
        length, room = struct.unpack(">II", head)
        source = read(channel, length).decode()
        os.ftruncate(out, 0)
        code = 0
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            run(source, names)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException as error:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            code = 1
            trace = error.__traceback__
            while trace and trace.tb_frame.f_code.co_filename != "step.py":
                trace = trace.tb_next
            traceback.print_exception(type(error), error, trace)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        size = os.fstat(out).st_size
        text = os.pread(out, min(size, room), 0)
        channel.sendall(struct.pack(">IBB", len(text), code & 255, size > room) + text)

def run(source, names):
    import linecache
    linecache.cache["step.py"] = (len(source), None, source.splitlines(True), "step.py")
    tree = ast.parse(source, "step.py")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "step.py", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "step.py", "eval"), names)
        if value is not None:
            print(repr(value))

def read(channel, count):
    data = b""
    while len(data) < count:
        more = channel.recv(count - len(data))
        if not more:
            os._exit(0)
        data += more
    return data

serve(socket.socket(fileno=3))
"""


class Session:
    """A shell or an interpreter in one sandbox. State survives steps: files, and variables of the interpreter.

    A step over its limit is ended and says so; an interpreter is interrupted first, and loses its variables only if
    it does not stop. Files stay until `close`. Steps of one session run one after another.
    """

    def __init__(self, sandbox: Sandbox, kind: Kind = "shell", *, limits: Limits | None = None) -> None:
        self._kind = kind
        self._limits = limits or Limits()
        self._cell = sandbox.open_cell(self._limits)
        self._interpreter: Job | None = None
        self._lock = threading.Lock()
        self.lost_state = False
        """Whether the last step cost the interpreter its variables."""

    def exec(self, source: str, *, limits: Limits | None = None) -> Execution:
        """Run one step: a command line, or Python whose last expression is shown.

        A Python step's `stdout` holds both streams in order.
        """
        with self._lock:
            self.lost_state = False
            limits = limits or self._limits
            if self._kind == "python":
                return self._exec_python(source, limits)
            command = _SHELL.format(state=_STATE, command=source)
            return self._cell.start(Program(argv=("sh", "-c", command)), limits).wait()

    def run(self, program: Program, *, limits: Limits | None = None) -> Execution:
        """Run a program on the session's files, outside its shell: what a step has exported does not reach it."""
        with self._lock:
            if self._interpreter is not None:
                raise ValueError("an interpreter is running: one program at a time")
            return self._cell.start(program, limits or self._limits).wait()

    def _exec_python(self, source: str, limits: Limits) -> Execution:
        if self._interpreter is None:
            program = Program(code=_INTERPRETER)
            self._interpreter = self._cell.start(program, limits, channel=True, is_interruptible=True)
        interpreter, channel = self._interpreter, self._interpreter.channel
        assert channel is not None
        self._cell.send({"do": "budget", "limits": asdict(limits)})
        text = source.encode()
        notice: dict[str, Any] = {}
        try:
            channel.sendall(_HEAD.pack(len(text), limits.output_kb << 10) + text)
            deadline = time.monotonic() + limits.net_s + _NET_S
            while not self._has_answer(channel, deadline):
                message = self._cell.receive()
                if "status" in message.header:
                    return self._interpreter_gone(self._cell.execution(message))
                notice = message.header
            length, code, is_cut = _REPLY.unpack(_exactly(channel, _REPLY.size))
            output = _exactly(channel, min(length, limits.output_kb << 10))
        except (EOFError, ConnectionError):
            return self._interpreter_gone(interpreter.wait())
        except (OSError, ValueError):
            # Half an answer, which only the step itself can have written; or the session was closed meanwhile.
            return self._interpreter_gone(interpreter.kill())
        return self._step_verdict(notice, output, code, bool(is_cut))

    def _has_answer(self, channel: socket.socket, deadline: float) -> bool:
        """Wait for the interpreter or the monitor; whether the interpreter has something to say."""
        with selectors.DefaultSelector() as selector:
            for source in (channel, self._cell):
                selector.register(source, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
        if not ready:
            raise TimeoutError
        return channel in ready

    def _interpreter_gone(self, execution: Execution) -> Execution:
        self._interpreter = None
        self.lost_state = True
        return execution

    def _step_verdict(self, notice: dict[str, Any], output: bytes, code: int, is_cut: bool) -> Execution:
        """The verdict on a step that the interpreter survived."""
        self._cell.send({"do": "rest"})
        try:
            header = self._cell.receive().header
            while "rests" not in header and "status" not in header:
                notice, header = header, self._cell.receive().header
        except (EOFError, OSError) as error:
            return self._interpreter_gone(self._cell.broken(error))
        if "status" in header:
            self._interpreter, self.lost_state = None, True
        return replace(
            self._cell.broken(EOFError()),
            status=notice.get("notice", "exited"),
            detail=notice.get("detail", ""),
            exit_code=None if notice else code,
            stdout=output,
            truncated=is_cut,
            **header.get("rests", {}),
        )

    def write(self, files: Mapping[str, bytes]) -> None:
        """Put files into the working directory. OSError when a link or a full disk is in the way.

        SandboxError when the session is over.
        """
        check_names(files)
        with self._lock:
            self._cell.send({"do": "put", "files": list(files)}, blobs=list(files.values()))
            problem = self._files_answer().header.get("problem")
        if problem:
            raise OSError(problem)

    def read(self, name: str) -> bytes:
        """A file's content. FileNotFoundError when there is none, when it is a link, or when it is too large.

        SandboxError when the session is over.
        """
        check_names([name])
        with self._lock:
            self._cell.send({"do": "collect", "collect": [name]})
            answer = self._files_answer()
        if not answer.blobs:
            raise FileNotFoundError(
                f"{name!r}: no regular file of at most {self._limits.file_mb} MB in the session"
            )
        return answer.blobs[0]

    def _files_answer(self) -> wire.Message:
        try:
            message = self._cell.receive()
            while "notice" in message.header:
                message = self._cell.receive()
            if "status" in message.header:
                # The interpreter ended by itself between two steps.
                self._interpreter = None
                message = self._cell.receive()
        except (EOFError, OSError) as error:
            raise SandboxError("the session is over: it was closed, or its sandbox has failed") from error
        return message

    def close(self) -> None:
        """End every process of the session and its files, also while a step runs."""
        self._cell.hang_up()
        with self._lock:
            if self._interpreter is not None and self._interpreter.channel is not None:
                self._interpreter.channel.close()
            self._interpreter = None
            self._cell.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def _exactly(channel: socket.socket, count: int) -> bytes:
    data = bytearray()
    channel.settimeout(_ANSWER_S)
    while len(data) < count:
        more = channel.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)
