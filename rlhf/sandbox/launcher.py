"""The process that a client starts once: it takes a tier's position, then forks a monitor for every job.

Started with `-P -s -S` and nothing but the standard library: one thread, so that it may enter user namespaces.
It lives as long as its control socket; its jobs live as long as their own.
"""

import contextlib
import gc
import glob
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from rlhf.sandbox import cell, interpreter, kernel, landlock, root, tasks, wire
from rlhf.sandbox.cell import Cell
from rlhf.sandbox.execution import Limits, Tier
from rlhf.sandbox.holding import kill_user
from rlhf.sandbox.monitor import Monitor
from rlhf.sandbox.storage import remove
from rlhf.sandbox.tree import children, wait_for_helper

FIRST_SLOT = 60578
"""User ids that no distribution gives to anybody (systemd's UIDS-GIDS: unused)."""
NUM_SLOTS = 600
SLOTS_PER_BLOCK = 20
_CHECK_S = 1.0
_BURIAL_S = 5.0


@dataclass(frozen=True, slots=True)
class _Worker:
    """A process that monitors one job, with a user id that no other has."""

    pid: int
    pidfd: int
    """Readable when it has ended."""
    uid: int | None


class Launcher:
    """A tier, its user ids and the processes that monitor jobs."""

    def __init__(self, control: socket.socket, settings: dict[str, Any]) -> None:
        self._control = control
        self._tier: Tier = settings["tier"]
        self._settings = settings
        self._readable = root.readable_paths(settings["prefixes"])
        self._owner = os.getppid()
        self._workers: list[_Worker] = []
        self._claims: list[socket.socket] = []
        self._slots: list[int] = []
        self._has_slots = False
        self._searches_by: int | None = None
        self._hidden_tasks = 0

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
            self._slots = _enter_own_namespaces(self._slots, self._settings["without"])
            self._has_slots = bool(self._slots)
            root.build(self._readable)
        elif not self._slots:
            self._hidden_tasks = max(0, tasks.counted() - tasks.seen())
        # A job of the same user must not reach into this process.
        kernel.set_dumpable(False)

    def _check_interpreter(self) -> None:
        """Programs run as another user than root: one that may have to pass root's folders to the interpreter."""
        hidden = [path for path in self._readable if not _as_user(self._slots[0], partial(os.stat, path))]
        # Containers have the first seldom, the second mostly.
        passing = (kernel.CAP_DAC_READ_SEARCH, kernel.CAP_DAC_OVERRIDE) if self._tier == "landlock" else ()
        if hidden:
            self._searches_by = next(filter(kernel.has_capability, passing), None)
        if hidden and self._searches_by is None:
            raise RuntimeError(
                f"the interpreter needs {hidden[0]}, which other users than root cannot read; "
                "name another interpreter in sandbox.python, for example /usr/bin/python3"
            )

    def serve(self) -> None:
        """Have jobs monitored until the client closes the control socket or is gone."""
        is_open, next_check = True, 0.0
        while is_open or self._workers:
            has_message = self._wait([self._control.fileno()] if is_open else [])
            if time.monotonic() > next_check:
                self._end_workers(lambda worker: _is_stopped(worker.pid))
                next_check = time.monotonic() + _CHECK_S
            if os.getppid() != self._owner:
                # A fork of the client may hold all its sockets open: nobody waits for these jobs.
                is_open = False
                self._end_workers(lambda _: True)
            elif has_message:
                is_open = self._accept()

    def _wait(self, controls: list[int]) -> bool:
        """Wait for one of `controls`, whether one is readable, or for a worker's end, or for a while."""
        watched = [*controls, *(worker.pidfd for worker in self._workers)]
        readable, _, _ = select.select(watched, [], [], _CHECK_S)
        self._release([worker for worker in self._workers if worker.pidfd in readable])
        return any(control in readable for control in controls)

    def _accept(self) -> bool:
        """Start the next job; whether there was one."""
        try:
            message = wire.receive(self._control)
        except (EOFError, OSError):
            return False
        while self._has_slots and not self._slots:
            # The last job's worker is still clearing up.
            if not self._workers:
                raise RuntimeError("every user id of this launcher has a process that could not be ended")
            self._wait([])
        uid = self._slots.pop() if self._slots else None
        # A process for every job, forked from this one, which has never seen a program: so no job can find
        # another's data in the memory it inherits.
        pid = os.fork()
        if pid == 0:
            os.close(self._control.fileno())
            for worker in self._workers:
                os.close(worker.pidfd)
            self._be_worker(message, uid)
        for descriptor in message.descriptors:
            os.close(descriptor)
        self._workers.append(_Worker(pid, os.pidfd_open(pid), uid))
        return True

    def _be_worker(self, message: wire.Message, uid: int | None) -> NoReturn:
        job = socket.socket(fileno=message.descriptors[0])
        is_clear = False
        try:
            kernel.set_subreaper()
            held = Cell(
                tier=self._tier,
                uid=uid,
                scratch=f"{self._settings['folder']}/rlhf-sandbox-{os.getpid()}-{os.urandom(4).hex()}",
                limits=Limits(**message.header["limits"]),
                readable=self._readable,
                searches_by=self._searches_by,
                hidden_tasks=self._hidden_tasks,
                packages=self._settings["packages"],
                without=frozenset(self._settings["without"]),
            )
            is_clear = Monitor(job, held).serve()
        except Exception as error:  # noqa: BLE001
            detail = "".join(traceback.format_exception_only(error)).strip()
            broken = {"status": "broken", "detail": detail, "files": []}
            with contextlib.suppress(OSError):
                wire.send(job, broken, blobs=[b"", b""])
        finally:
            os._exit(0 if is_clear else 1)

    def _end_workers(self, is_meant: Callable[[_Worker], bool]) -> None:
        meant = [worker for worker in self._workers if is_meant(worker)]
        for worker in meant:
            os.kill(worker.pid, signal.SIGKILL)
        self._release(meant)

    def _release(self, ended: list[_Worker]) -> None:
        """Take back the user ids of workers that have ended; clear up after one that could not."""
        for worker in ended:
            self._workers.remove(worker)
            _, status = os.waitpid(worker.pid, 0)
            os.close(worker.pidfd)
            # An id that still has processes is given to nobody.
            if (not status or self._bury(worker)) and worker.uid is not None:
                self._slots.append(worker.uid)

    def _bury(self, dead: _Worker) -> bool:
        """End what a worker watched, which has come to us, and remove its folder; whether no process is left."""
        deadline = time.monotonic() + _BURIAL_S
        while orphans := children(os.getpid()) - {worker.pid for worker in self._workers}:
            if time.monotonic() > deadline:
                break
            if dead.uid is not None:
                kill_user(dead.uid)
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.001)
        if self._tier != "namespaces":
            for folder in glob.glob(f"{self._settings['folder']}/rlhf-sandbox-{dead.pid}-*"):
                remove(folder)
        return not orphans


def _is_stopped(pid: int) -> bool:
    """Whether a child was stopped since this was asked last: then it watches nothing any more."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is not None
    except ChildProcessError:
        # It has just ended.
        return False


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
    return wait_for_helper(pid) == 0


def _enter_own_namespaces(slots: list[int], without: list[str]) -> list[int]:
    """Take mounts, IPC, names and network of our own; the user ids that can still be given to jobs."""
    if os.getuid() == 0:
        try:
            kernel.leave_host(without)
        except PermissionError:
            # Root of a container, without the right to mount: go on as a user without any right.
            if slots:
                cell.become(slots[0])
        else:
            return slots
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    cell.map_ids(uid, gid)
    kernel.leave_host(without)
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
