"""The process that a client starts once: it takes a tier's position, then forks a monitor for every job.

Started with `-P -s -S` and nothing but the standard library: one thread, so that it may enter user namespaces.
It lives as long as its control socket; its jobs live as long as their own.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from rlhf.sandbox import cell, interpreter, kernel, landlock, root, wire
from rlhf.sandbox.cell import Cell
from rlhf.sandbox.execution import Limits, Tier
from rlhf.sandbox.holding import remove
from rlhf.sandbox.monitor import Monitor
from rlhf.sandbox.tree import ProcessTree

FIRST_SLOT = 60578
"""User ids that no distribution gives to anybody (systemd's UIDS-GIDS: unused)."""
NUM_SLOTS = 600
SLOTS_PER_BLOCK = 20
_OWNER_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class _Worker:
    """A process that monitors one job, with a user id that no other has."""

    pid: int
    connection: socket.socket
    uid: int | None


class Launcher:
    """A tier, its user ids and the processes that monitor jobs."""

    def __init__(self, control: socket.socket, settings: dict[str, Any]) -> None:
        self._control = control
        self._tier: Tier = settings["tier"]
        self._settings = settings
        self._readable = root.readable_paths(settings["prefixes"])
        self._owner = os.getppid()
        self._spare: _Worker | None = None
        self._busy: list[_Worker] = []
        self._claims: list[socket.socket] = []
        self._slots: list[int] = []
        self._has_slots = False
        self._may_search = False
        self._folder = ""

    def take_position(self) -> None:
        """Do what the tier needs once. OSError or RuntimeError says why it cannot be had here."""
        if os.getuid() == 0:
            self._claims, self._slots = _claim_slots(self._settings["max_jobs"])
        self._has_slots = bool(self._slots)
        if self._tier == "uid" and not self._slots:
            raise RuntimeError("switching to another user needs root")
        if self._tier == "landlock" and (reason := landlock.absence()):
            raise RuntimeError(reason)
        kernel.set_subreaper()
        if self._tier != "namespaces" and self._slots:
            self._check_interpreter()
        if self._tier == "namespaces":
            self._slots = _enter_own_namespaces(self._slots)
            self._has_slots = bool(self._slots)
            root.build(self._readable)
        else:
            self._folder = f"{self._settings['folder']}/rlhf-sandbox-{os.getpid()}-{os.urandom(4).hex()}"
            os.mkdir(self._folder, 0o711)
        # A job of the same user must not reach into this process.
        kernel.set_dumpable(False)

    def _check_interpreter(self) -> None:
        """Programs run as another user than root: one that may have to pass root's folders to the interpreter."""
        hidden = [path for path in self._readable if not _as_user(self._slots[0], partial(os.stat, path))]
        self._may_search = bool(hidden) and self._tier == "landlock"
        if hidden and not self._may_search:
            raise RuntimeError(
                f"the interpreter needs {hidden[0]}, which other users than root cannot read; "
                "name another interpreter in sandbox.python, for example /usr/bin/python3"
            )

    def serve(self) -> None:
        """Have jobs monitored until the client closes the control socket or is gone; then clean up."""
        is_open = True
        while is_open or self._busy:
            watched = [*([self._control] if is_open else []), *(worker.connection for worker in self._busy)]
            readable, _, _ = select.select(watched, [], [], _OWNER_CHECK_S)
            self._collect()
            if is_open and (self._control in readable or os.getppid() != self._owner):
                is_open = self._accept()
        if self._spare is not None:
            self._retire(self._spare)
        if self._folder:
            remove(self._folder)

    def _accept(self) -> bool:
        """Start the next job; whether there was one."""
        try:
            message = wire.receive(self._control)
        except (EOFError, OSError):
            return False
        while self._spare is None and self._has_slots and not self._slots:
            # The last jobs' workers are still clearing up.
            select.select([worker.connection for worker in self._busy], [], [])
            self._collect()
        worker = self._spare or self._start_worker()
        wire.send(worker.connection, message.header, descriptors=message.descriptors)
        for descriptor in message.descriptors:
            os.close(descriptor)
        self._busy.append(worker)
        # Ready before it is wanted. Each job gets a fresh one: what an earlier job read or wrote is in no memory that
        # a later one's processes are copied from.
        self._spare = self._start_worker() if self._slots or not self._has_slots else None
        return True

    def _start_worker(self) -> _Worker:
        uid = self._slots.pop() if self._slots else None
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for other in (self._control, ours, *(worker.connection for worker in self._workers())):
                other.close()
            self._be_worker(theirs, uid)
        theirs.close()
        return _Worker(pid, ours, uid)

    def _workers(self) -> list[_Worker]:
        return [*self._busy, *([self._spare] if self._spare is not None else [])]

    def _be_worker(self, assignment: socket.socket, uid: int | None) -> NoReturn:
        try:
            kernel.set_subreaper()
            message = wire.receive(assignment)
            self._monitor(message, uid, f"{self._folder}/{os.getpid()}")
        except (EOFError, OSError):
            pass
        finally:
            os._exit(0)

    def _monitor(self, message: wire.Message, uid: int | None, scratch: str) -> None:
        job = socket.socket(fileno=message.descriptors[0])
        held = Cell(
            tier=self._tier,
            uid=uid,
            scratch=scratch,
            limits=Limits(**message.header["limits"]),
            readable=self._readable,
            may_search=self._may_search,
            packages=self._settings["packages"],
            without=frozenset(self._settings["without"]),
        )
        with job:
            try:
                Monitor(job, held).serve()
            except Exception as error:  # noqa: BLE001
                detail = "".join(traceback.format_exception_only(error)).strip()
                broken = {"status": "broken", "detail": detail, "files": []}
                with contextlib.suppress(OSError):
                    wire.send(job, broken, blobs=[b"", b""])

    def _collect(self) -> None:
        """Take leave of the workers whose job is over, or that were killed: their sockets are closed."""
        closed = select.select([worker.connection for worker in self._busy], [], [], 0)[0]
        for worker in [worker for worker in self._busy if worker.connection in closed]:
            self._busy.remove(worker)
            self._retire(worker)

    def _retire(self, worker: _Worker) -> None:
        worker.connection.close()
        _, status = os.waitpid(worker.pid, 0)
        if status:
            self._bury(worker)
        if worker.uid is not None:
            self._slots.append(worker.uid)

    def _bury(self, dead: _Worker) -> None:
        """A monitor was killed: what it watched has come to us, and ends."""
        others = [worker.pid for worker in self._workers()]
        tree = ProcessTree(os.getpid())
        for _ in range(1000):
            kept = {pid for other in others for pid in (other, *ProcessTree(other).pids())}
            orphans = [pid for pid in tree.pids() if pid not in kept]
            for pid in orphans:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            if not orphans:
                break
        if self._folder:
            remove(f"{self._folder}/{dead.pid}")


def _claim_slots(count: int) -> tuple[list[socket.socket], list[int]]:
    """At least `count` user ids that no other launcher on this machine uses, and what holds the claims.

    None where root is not real. RuntimeError when too few are left.
    """
    blocks = NUM_SLOTS // SLOTS_PER_BLOCK
    claims: list[socket.socket] = []
    slots: list[int] = []
    for attempt in range(blocks):
        block = (os.getpid() + attempt) % blocks
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0rlhf-sandbox-slots-{block}")
        except OSError:
            claim.close()
            continue
        claims.append(claim)
        first = FIRST_SLOT + block * SLOTS_PER_BLOCK
        if not slots and not _as_user(first, os.getuid):
            return [], []
        slots += range(first, first + SLOTS_PER_BLOCK)
        if len(slots) >= count:
            return claims, slots
    raise RuntimeError(
        f"{count} programs at once need as many user ids, but other launchers on this machine left {len(slots)}"
    )


def _as_user(uid: int, action: Callable[[], object]) -> bool:
    """Whether user `uid` can do it; also false where one cannot become that user."""
    pid = os.fork()
    if pid == 0:
        try:
            cell.become(uid)
            action()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _enter_own_namespaces(slots: list[int]) -> list[int]:
    """Take mounts, IPC, names and network of our own; the user ids that can still be given to jobs."""
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWNET
    if os.getuid() == 0:
        try:
            kernel.unshare(flags)
        except PermissionError:
            # Root of a container, without the right to mount: go on as a user without any right.
            if slots:
                cell.become(slots[0])
        else:
            return slots
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    cell.map_ids(uid, gid, inside_uid=uid, inside_gid=gid)
    kernel.unshare(flags)
    return []


def main() -> None:
    """Serve on the control socket named on the command line."""
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=settings["control"])
    control.set_inheritable(False)
    for name in interpreter.PRELOADED.split():
        importlib.import_module(name)
    launcher = Launcher(control, settings)
    try:
        launcher.take_position()
    except (OSError, RuntimeError) as error:
        wire.send(control, {"refused": str(error)})
        return
    gc.collect()
    # Every fork copies what the collector touches; programs switch it on again for themselves.
    gc.freeze()
    gc.disable()
    wire.send(control, {"ready": True})
    launcher.serve()
