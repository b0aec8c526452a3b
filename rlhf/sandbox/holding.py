"""A job's cell as its monitor sees it: behind namespaces with an init, or as children of the monitor itself."""

import contextlib
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

from rlhf.sandbox import cell as cells
from rlhf.sandbox import files, wire
from rlhf.sandbox.cell import Cell
from rlhf.sandbox.storage import disk_use, remove
from rlhf.sandbox.tree import ProcessTree, wait_for_helper

END_S = 10.0
"""Longest wait for killed processes to be gone."""


class Namespaces:
    """A cell of the `namespaces` tier: when its init dies, the kernel ends everything in it and its mounts."""

    def __init__(self, cell: Cell) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._init = cells.start_init(cell, theirs)
        message = wire.receive(self._connection)
        if "broken" in message.header:
            raise RuntimeError(message.header["broken"])
        # The job's own process table holds nothing but the job; without one the host's is searched.
        self._table = message.descriptors
        self._early: wire.Message | None = None
        if self._table:
            self.tree = ProcessTree(1, proc=f"/proc/self/fd/{self._table[0]}", reader=cell.uid)
        else:
            self.tree = ProcessTree(self._init, reader=cell.uid)

    def start(self, header: dict[str, Any], contents: Sequence[bytes], descriptors: Sequence[int]) -> None:
        """Have the init start a step."""
        wire.send(self._connection, header, blobs=contents, descriptors=descriptors)

    def fileno(self) -> int:
        """Readable when the step has ended."""
        return self._connection.fileno()

    def answer(self) -> wire.Message:
        """How the step ended; `broken` when the init is gone."""
        try:
            message, self._early = self._early or wire.receive(self._connection), None
        except (EOFError, ConnectionResetError):
            return wire.Message({"broken": "its init has ended"}, [], [])
        return message

    def has_ended(self) -> bool:
        """Whether the step's answer has been read on the way to another."""
        return self._early is not None

    def move_files(self, order: wire.Message) -> wire.Message:
        """Have files put or collected, also while a step runs."""
        wire.send(self._connection, order.header, blobs=order.blobs)
        message = wire.receive(self._connection)
        if "ended" in message.header:
            self._early = message
            message = wire.receive(self._connection)
        return message

    def reap(self) -> None:
        """The init does."""

    def kill_step(self) -> None:
        """Kill all but the init, which then answers."""
        os.kill(self._init, signal.SIGUSR1)

    def kill_all(self) -> None:
        """Kill the init, with which everything ends at once."""
        os.kill(self._init, signal.SIGKILL)

    def interrupt(self) -> None:
        """Send SIGINT to what runs."""
        _interrupt(self._init)

    def disk_mb(self, _open_files: Sequence[tuple[str, os.stat_result]]) -> float:
        """0: the scratch folder's own size is the limit."""
        return 0.0

    def end(self) -> int:
        """End everything; how many processes could not be ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        self._connection.close()
        while self._table:
            os.close(self._table.pop())
        return 0 if _reap() else _wait_for_children()


class Children:
    """A cell of the other tiers: its processes are children of this one, or come to it when their parent ends."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.tree = ProcessTree(os.getpid(), reader=cell.uid)
        self._pid, self._pidfd = 0, -1
        self._groups: set[int] = set()
        self._header: dict[str, Any] = {}
        self._problem = ""
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)
        os.mkdir(cell.scratch, 0o700)
        if cell.uid is not None:
            os.chown(cell.scratch, cell.uid, cell.uid)

    def start(self, header: dict[str, Any], contents: Sequence[bytes], descriptors: Sequence[int]) -> None:
        """Start a step."""
        cell = self._cell
        self._header = header
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)
        problem = files.put(cell.scratch, dict(zip(header["files"], contents, strict=True)), owner=cell.uid)
        if problem:
            self._pid, self._problem = 0, json.dumps({"refused": problem})
        else:
            self._pid, self._problem = cells.spawn(cell, cells.step_of(header, descriptors, cell.scratch))
        if self._pid:
            self._groups.add(self._pid)
        self._pidfd = os.pidfd_open(self._pid) if self._pid else _readable()

    def fileno(self) -> int:
        """Readable when the step has ended."""
        return self._pidfd

    def answer(self) -> wire.Message:
        """How the step ended."""
        os.close(self._pidfd)
        if not self._pid:
            return wire.Message(json.loads(self._problem), [], [])
        _, status = os.waitpid(self._pid, 0)
        if not self._header["lingers"]:
            self._sweep()
        names, room = self._header["collect"], self._header["collect_bytes"]
        found = files.collect(self._cell.scratch, names, room, owner=self._cell.uid)
        usage = cells.used_since(self._before)
        return wire.Message({"ended": status, **usage, "files": list(found)}, list(found.values()), [])

    def has_ended(self) -> bool:
        """False: an answer is never read by the way here."""
        return False

    def move_files(self, order: wire.Message) -> wire.Message:
        """Put or collect files, also while a step runs."""
        header = {**order.header, "owner": self._cell.uid}
        return wire.Message(*files.serve(self._cell.scratch, header, order.blobs), [])

    def reap(self) -> None:
        """Take leave of orphans, which the kernel would count as processes of the job until then."""
        with contextlib.suppress(ChildProcessError):
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            while (ended := os.waitid(os.P_ALL, 0, flags)) is not None and ended.si_pid != self._pid:
                os.waitpid(ended.si_pid, 0)

    def kill_step(self) -> None:
        """Kill every process of the job."""
        self._kill_round()

    def kill_all(self) -> None:
        """Kill every process of the job, and no other."""
        self._kill_round()

    def interrupt(self) -> None:
        """Send SIGINT to what runs."""
        _interrupt(os.getpid())

    def disk_mb(self, open_files: Sequence[tuple[str, os.stat_result]]) -> float:
        """What lies in the scratch folder, in files open but without a name, too."""
        return disk_use(self._cell.scratch, self.tree, open_files, file_mb=self._cell.limits.file_mb)

    def end(self) -> int:
        """End everything and remove the scratch folder; how many processes could not be ended."""
        left = self._sweep()
        remove(self._cell.scratch)
        return left

    def _sweep(self) -> int:
        """Kill until no child is left, ours or one that came to us; how many are left after END_S."""
        deadline = time.monotonic() + END_S
        while not _reap():
            if time.monotonic() > deadline:
                return len(self.tree.pids())
            self._kill_round()
            time.sleep(0.001)
        return 0

    def _kill_round(self) -> None:
        """Kill what is there now: stopped first, so that none forks while others are killed."""
        if self._cell.uid is not None:
            kill_user(self._cell.uid)
        pids = self.tree.pids()
        for group in self._groups & set(map(_group, pids)):
            # In one call, too. A group that is not among them may have become another's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)


def _interrupt(root: int) -> None:
    # By the host's process ids, which those of the job's own table are not.
    for pid in ProcessTree(root).pids():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGINT)


def _readable() -> int:
    """A descriptor that is readable at once: it stands in for a step that never began."""
    read_end, write_end = os.pipe()
    os.close(write_end)
    return read_end


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def kill_user(uid: int) -> None:
    """Kill every process of a user in one call, which no fork can outrun."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            cells.become(uid)
            os.kill(-1, signal.SIGKILL)
        os._exit(0)
    wait_for_helper(pid)


def _reap() -> bool:
    """Reap what has ended; whether no child is left."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return False
    return True


def _wait_for_children() -> int:
    deadline = time.monotonic() + END_S
    while not _reap():
        if time.monotonic() > deadline:
            return 1
        time.sleep(0.0005)
    return 0
