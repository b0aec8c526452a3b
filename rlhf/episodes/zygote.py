"""The process that has imported an environment and is forked for every episode: `main()` with SOCKET_FD.

One thread, so that it may be forked. It lives as long as its control socket, and nothing that it started outlives it:
its parent (`keeper`) sees to that, should it be killed itself.
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
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rlhf.episodes.keeper import children, descendants, keep, kill, reap
from rlhf.episodes.line import Line
from rlhf.episodes.played import Kind, Loaded, describe
from rlhf.episodes.worker import TRACEBACK_CHARACTERS, play
from rlhf.errors import EpisodeError, LoadError, RlhfError
from rlhf.importing import load_object, warm_up_of
from rlhf.sandbox import kernel, storage, wire
from rlhf.sandbox.client import default_sandbox, set_default_policy
from rlhf.sandbox.policy import Policy

_WAIT_S = 1.0
_AGAIN_S = 0.02


class _HungUp(Exception):
    """Nobody is at the other end of the control socket any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEnvironment:
    """What to import, from where."""

    use: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    code_dir: str | None = None
    sandbox: Policy = field(default_factory=Policy)
    max_live: int = 16
    """Episodes at a time, each of which may hold a place in the sandbox."""
    start_s: float = 600.0
    """Longest wait for all this."""


class Zygote:
    """A loaded environment and the episodes forked from it."""

    def __init__(self, control: socket.socket, *, folder: str, make: Callable[[], Any], kind: Kind) -> None:
        self._control = control
        self._folder = folder
        self._make = make
        self._kind: Kind = kind
        self._sessions: dict[int, int] = {}
        """Episode -> session id, which is the id of its first process."""
        self._ending: set[int] = set()
        """Those that are to end, and have not yet."""
        self._own = frozenset(children(os.getpid()))
        """What the environment's module or the sandbox has started for all episodes."""

    def serve(self) -> None:
        """Fork and kill as told, until the other side is gone; then end everything."""
        # Woken by the end of any child.
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with contextlib.suppress(_HungUp):
            while True:
                ready, _, _ = select.select([self._control.fileno(), readable], [], [], _WAIT_S)
                if readable in ready:
                    os.read(readable, 4096)
                if self._control.fileno() in ready:
                    self._obey(readable, writable)
                for episode in self._ended():
                    self._tell({"ended": episode})
        self._ending |= set(self._sessions)
        while self._ending:
            for _ in self._ended():
                pass
            time.sleep(_AGAIN_S)
        signal.set_wakeup_fd(-1)
        storage.remove(self._folder)

    def _obey(self, *ours: int) -> None:
        try:
            message = wire.receive(self._control)
        except (EOFError, OSError) as error:
            raise _HungUp from error
        match message.header:
            case {"start": int(episode)}:
                self._start(episode, message.descriptors[0], ours)
            case {"kill": int(episode), "pid": int(pid)}:
                self._kill(episode, pid)
            case {"end": int(episode)}:
                self._ending.add(episode)

    def _tell(self, header: dict[str, Any]) -> None:
        try:
            wire.send(self._control, header)
        except OSError as error:
            raise _HungUp from error

    def _start(self, episode: int, descriptor: int, ours: tuple[int, ...]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            os.close(descriptor)
            self._tell({"started": episode, "refused": f"no process can be forked: {error}"})
            return
        if pid:
            os.close(descriptor)
            self._sessions[episode] = pid
            self._tell({"started": episode, "pid": pid})
            return
        # Whatever happens, this process must never come back to where episodes are ended.
        try:
            self._begin(episode, descriptor, ours)
        finally:
            os._exit(1)

    def _begin(self, episode: int, descriptor: int, ours: tuple[int, ...]) -> NoReturn:
        kernel.die_with_parent()
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for number in ours:
            os.close(number)
        folder = f"{self._folder}/{episode}"
        os.mkdir(folder, 0o700)
        _print_to(f"{folder}.output")
        play(Line(socket.socket(fileno=descriptor)), folder, (self._make, self._kind))

    def _kill(self, episode: int, pid: int) -> None:
        """End one process of an episode and its group; what it kept as a checkpoint goes on."""
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == self._sessions.get(episode):
                os.killpg(pid, signal.SIGKILL)

    def _ended(self) -> Iterator[int]:
        """Bury what has ended; kill what has to, and what comes from no episode. Those of which nothing is left."""
        reap()
        found: dict[int, list[int]] = {session: [] for session in self._sessions.values()}
        for pid in set(children(os.getpid())) - self._own:
            # One that has just been forked is not in its session yet.
            session = pid if pid in found else _session(pid)
            if session in found:
                found[session].append(pid)
            else:
                kill([pid, *descendants(pid)])
        for episode in list(self._ending):
            session = self._sessions.get(episode, 0)
            if left := found.get(session):
                # Its orphans have come to us by the time that their parent is buried.
                kill([one for pid in left for one in (pid, *descendants(pid))])
                continue
            self._clear(episode)
            self._ending.remove(episode)
            self._sessions.pop(episode, None)
            yield episode

    def _clear(self, episode: int) -> None:
        """Remove what an episode has left on disk. What cannot be is told in the log, and goes with the folder."""
        output = f"{self._folder}/{episode}.output"
        try:
            storage.remove(f"{self._folder}/{episode}")
            try:
                Path(output).unlink(missing_ok=True)
            except IsADirectoryError:
                storage.remove(output)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.write(2, f"what episode {episode} has left cannot be removed: {error}\n".encode())


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
    folder = tempfile.mkdtemp(prefix=f"rlhf-episodes-{os.getpid()}-")
    os.chmod(folder, 0o711)
    if process := os.fork():
        keep(process, control, folder)
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
    wire.send(control, {"loaded": kind, "folder": folder})
    Zygote(control, folder=folder, make=make, kind=kind).serve()


def _load(load: LoadEnvironment) -> Loaded:
    if load.code_dir is not None:
        sys.path.insert(0, load.code_dir)
    set_default_policy(load.sandbox, max_jobs=load.max_live)
    loaded = load_object(load.use, key="task.environment.use")
    if warm_up := warm_up_of(load.use, loaded, key="task.environment.use"):
        warm_up(**load.kwargs) if inspect.signature(warm_up).parameters else warm_up()
    try:
        make, kind = describe(loaded, load.kwargs)
    except EpisodeError as error:
        raise LoadError(f"task.environment.use: {error}") from error
    if getattr(loaded, "uses_sandbox", False):
        default_sandbox().lend()
    return make, kind
