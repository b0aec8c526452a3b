"""A process of its own that answers one message at a time over a pipe, and ends with its parent."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[1]
RANK_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
Answer = Callable[[Any], Any]


class ChildError(RuntimeError):
    """A child ended before it answered."""


class Child:
    """The parent's side. Its environment is complete before the interpreter starts: OpenMP reads it once."""

    def __init__(self, command: list[str], environment: Mapping[str, str], *, log: Path) -> None:
        """`command`: a script of this folder and its arguments; what it prints goes to `log`."""
        self._log = log
        self._pipe, theirs = Pipe()
        log.parent.mkdir(parents=True, exist_ok=True)
        script, *arguments = command
        inherited = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name(script)), str(theirs.fileno()), *arguments],
                env={**inherited, **environment, "PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        try:
            self._process.wait(timeout=10 if error is None else 1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, message: Any) -> Any:
        """Send a message and wait for the answer. Raises ChildError with the end of the log."""
        try:
            send(self._pipe, message)
            return receive(self._pipe)
        except (EOFError, OSError) as error:
            text = self._log.read_text(encoding="utf-8", errors="replace")
            last = "\n".join(text.splitlines()[-20:])
            raise ChildError(f"a benchmark process ended (log: {self._log}):\n{last}") from error


def serve(prepare: Callable[[Any], Answer]) -> None:
    """The child's side: the first message prepares, every other one is answered; ends when the pipe closes."""
    pipe = open_pipe()
    answer = prepare(receive(pipe))
    send(pipe, "ready")
    while True:
        try:
            message = receive(pipe)
        except EOFError:
            break
        send(pipe, answer(message))
    # Libraries that end badly have nothing left to say.
    sys.stdout.flush()
    os._exit(0)


def open_pipe() -> Connection:
    """The pipe whose number is the script's first argument."""
    return Connection(int(sys.argv[1]))


def send(pipe: Connection, message: Any) -> None:
    """As a plain pickle: with torch imported, Connection.send would pass tensors as shared memory."""
    pipe.send_bytes(pickle.dumps(message))


def receive(pipe: Connection) -> Any:
    """The next message. Raises EOFError when the other side is gone."""
    return pickle.loads(pipe.recv_bytes())
