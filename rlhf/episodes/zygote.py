"""The process that has imported an environment and is forked for every episode: `main()` with SOCKET_FD.

One thread, so that it may be forked. It lives as long as its control socket, and nothing that it started outlives it.
"""

import contextlib
import inspect
import os
import pickle
import select
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.episodes.line import Line
from rlhf.episodes.worker import TRACEBACK_CHARACTERS, Kind, describe, play
from rlhf.errors import EpisodeError, LoadError, RlhfError
from rlhf.importing import load_object
from rlhf.sandbox import kernel, storage, wire
from rlhf.sandbox.client import default_sandbox, set_default_policy
from rlhf.sandbox.policy import Policy

_WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEnvironment:
    """What to import, from where."""

    use: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    code_dir: str | None = None
    sandbox: Policy = field(default_factory=Policy)
    max_live: int = 16
    """Episodes at a time, each of which may hold a place in the sandbox."""


class Zygote:
    """A loaded environment and the episodes forked from it."""

    def __init__(self, control: socket.socket, *, make: Callable[[], Any], kind: Kind) -> None:
        self._control = control
        self._make = make
        self._kind: Kind = kind
        self.folder = tempfile.mkdtemp(prefix=f"rlhf-episodes-{os.getpid()}-")
        os.chmod(self.folder, 0o711)
        self._sessions: dict[int, int] = {}
        """Episode -> session id, which is the id of its first process."""
        self._own = _children()
        """What the environment's module or the sandbox has started for all episodes."""

    def serve(self) -> None:
        """Fork and kill as told, until the other side is gone; then end everything."""
        # Woken by the end of any child.
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            while True:
                ready, _, _ = select.select([self._control.fileno(), readable], [], [], _WAIT_S)
                if readable in ready:
                    os.read(readable, 4096)
                if self._control.fileno() in ready and not self._obey(readable, writable):
                    return
                self._reap()
        finally:
            signal.set_wakeup_fd(-1)
            self._end_sessions(set(self._sessions.values()))
            storage.remove(self.folder)

    def _obey(self, *ours: int) -> bool:
        try:
            message = wire.receive(self._control)
        except (EOFError, OSError):
            return False
        match message.header:
            case {"start": int(episode)}:
                self._start(episode, message.descriptors[0], ours)
            case {"kill": int(episode), "pid": int(pid)}:
                self._kill(episode, pid)
            case {"end": int(episode)}:
                self._end(episode)
                wire.send(self._control, {"ended": episode})
        return True

    def _start(self, episode: int, descriptor: int, ours: tuple[int, ...]) -> None:
        folder = f"{self.folder}/{episode}"
        pid = os.fork()
        if pid:
            os.close(descriptor)
            self._sessions[episode] = pid
            wire.send(self._control, {"started": episode, "pid": pid})
            return
        kernel.die_with_parent()
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for number in ours:
            os.close(number)
        os.mkdir(folder, 0o700)
        _print_to(f"{folder}.output")
        play(Line(socket.socket(fileno=descriptor)), folder, (self._make, self._kind))

    def _kill(self, episode: int, pid: int) -> None:
        """End one process of an episode and its group; what it kept as a checkpoint goes on."""
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == self._sessions.get(episode):
                os.killpg(pid, signal.SIGKILL)

    def _end(self, episode: int) -> None:
        """End all of an episode, however it has grouped itself, and remove its files."""
        session = self._sessions.pop(episode, None)
        if session is not None:
            self._end_sessions({session})
        storage.remove(f"{self.folder}/{episode}")
        Path(f"{self.folder}/{episode}.output").unlink(missing_ok=True)

    def _end_sessions(self, sessions: Set[int]) -> None:
        """Kill all members of sessions at once, until there are none: what loses its parent comes to us."""
        while found := [child for child in _children() if child in sessions or _session(child) in sessions]:
            for pid in [pid for child in found for pid in _family(child)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for child in found:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child, 0)

    def _reap(self) -> None:
        """Bury what has ended; end what has come to us from a session that is no episode's."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        known = set(self._sessions.values())
        for pid in _children() - self._own - known:
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) not in known:
                    os.kill(pid, signal.SIGKILL)


def _children(pid: int | None = None) -> frozenset[int]:
    """Of all threads of a process; its own: of its one thread. Empty for one that is gone."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task") if pid else [os.getpid()]:
            with open(f"/proc/{pid or 'self'}/task/{thread}/children", encoding="ascii") as file:
                found |= set(map(int, file.read().split()))
    return frozenset(found)


def _family(pid: int) -> list[int]:
    """A process and all below it, parents first."""
    found = [pid]
    for one in found:
        found.extend(_children(one) - set(found))
    return found


def _session(pid: int) -> int:
    """The session of a process; 0: it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _print_to(path: str) -> None:
    """Standard output and error into a file."""
    output = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)


def main() -> None:
    """Import what is named in the first message, answer with how it is played, then serve."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    kernel.set_subreaper()
    load: LoadEnvironment = pickle.loads(wire.receive(control).blobs[0])
    try:
        make, kind = _load(load)
    except RlhfError as error:
        wire.send(control, {"refused": str(error)})
        return
    except BaseException as error:  # noqa: BLE001 -- a module may raise anything, SystemExit too
        tail = "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
        wire.send(
            control, {"refused": f"loading {load.use!r} raised {type(error).__name__}: {error}\n{tail}"}
        )
        return
    zygote = Zygote(control, make=make, kind=kind)
    wire.send(control, {"loaded": kind, "folder": zygote.folder})
    zygote.serve()


def _load(load: LoadEnvironment) -> tuple[Callable[[], Any], Kind]:
    if load.code_dir is not None:
        sys.path.insert(0, load.code_dir)
    set_default_policy(load.sandbox, max_jobs=load.max_live)
    loaded = load_object(load.use, key="task.environment.use")
    module = sys.modules.get(getattr(loaded, "__module__", ""))
    if callable(warm_up := getattr(module, "warm_up", None)):
        warm_up(**load.kwargs) if inspect.signature(warm_up).parameters else warm_up()
    try:
        make, kind = describe(loaded, load.kwargs)
    except EpisodeError as error:
        raise LoadError(f"task.environment.use: {error}") from error
    if getattr(loaded, "uses_sandbox", False):
        default_sandbox().lend()
    return make, kind
