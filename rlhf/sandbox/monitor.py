"""Watches one job from outside its walls: carries its output, measures it, ends it, leaves nothing behind."""

import contextlib
import math
import os
import select
import selectors
import signal
import socket
import time
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf.sandbox import wire
from rlhf.sandbox.cell import Cell
from rlhf.sandbox.execution import Limits
from rlhf.sandbox.holding import END_S, Children, Namespaces
from rlhf.sandbox.tree import Usage, buffers_mb

_TICK_S = 0.02
_LOOK_S = 0.06
_LOOK_SHARE = 0.1
"""Of the time, at most, goes into looking at files: a program can have very many."""
_CHUNK = 1 << 16
_REST_TICK_S = 1.0
_GRACE_S = 1.0
"""What an interrupted interpreter gets to say so."""
_PATIENCE_S = 0.5
"""How long the init of a job that is over may take to end it before it is ended itself."""
_STARVED_SHARE = 0.5
_FILE_ORDERS = ("put", "collect")
_NOTHING = Usage(0.0, 0.0, 0, 0.0)


class _Pipes:
    """Our ends of a step's standard streams."""

    def __init__(self, stdin: bytes, *, room: int) -> None:
        pairs = [os.pipe() for _ in range(3)]
        self.theirs = [pairs[0][0], pairs[1][1], pairs[2][1]]
        self.ours = {pairs[0][1]: "stdin", pairs[1][0]: "stdout", pairs[2][0]: "stderr"}
        self.output = {"stdout": bytearray(), "stderr": bytearray()}
        self.is_full = False
        self._left = memoryview(stdin)
        self._room = room
        for descriptor in self.ours:
            os.set_blocking(descriptor, False)

    def give(self) -> None:
        """Close the ends that are the program's."""
        while self.theirs:
            os.close(self.theirs.pop())

    def close(self) -> None:
        """Close everything."""
        self.give()
        for descriptor in list(self.ours):
            self._shut(descriptor)

    def move(self, descriptor: int) -> bool:
        """Carry what can be carried; whether the pipe is still open."""
        try:
            if self.ours[descriptor] == "stdin":
                self._left = (
                    self._left[os.write(descriptor, self._left[:_CHUNK]) :] if self._left else self._left
                )
                return bool(self._left) or self._shut(descriptor)
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return self._shut(descriptor)
        if not data:
            return self._shut(descriptor)
        kept = data[: max(self._room, 0)]
        self.output[self.ours[descriptor]] += kept
        self._room -= len(kept)
        self.is_full = self.is_full or len(kept) < len(data)
        return True

    def drain(self) -> None:
        """Take what still lies in the output pipes."""
        for descriptor, name in list(self.ours.items()):
            before = -1
            while name != "stdin" and descriptor in self.ours and len(self.output[name]) != before:
                before = len(self.output[name])
                self.move(descriptor)

    def _shut(self, descriptor: int) -> bool:
        os.close(descriptor)
        del self.ours[descriptor]
        return False


@dataclass(slots=True, kw_only=True)
class _Watch:
    """What is known about the running step."""

    limits: Limits
    pipes: _Pipes
    before: Usage
    began: float = field(default_factory=time.monotonic)
    usage: Usage = _NOTHING
    peak_mb: float = 0.0
    verdict: str = ""
    detail: str = ""
    killed_at: float = 0.0
    is_interruptible: bool
    lingers: bool
    warned: tuple[str, str] = ("", "")
    rests: bool = False
    asked: tuple[float, float] = (0.0, 0.0)
    """CPU seconds used and time when the client last gave a budget."""

    def renew(self, limits: Limits, usage: Usage) -> None:
        """Count CPU and wall time from now on."""
        self.limits, self.before, self.began = limits, usage, time.monotonic()

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.began


class Monitor:
    """One job: its cell, its steps one after another, its end."""

    def __init__(self, job: socket.socket, cell: Cell) -> None:
        self._job = job
        self._held = Namespaces(cell) if cell.tier == "namespaces" else Children(cell)
        self._limits = cell.limits
        self._has_watcher = cell.has("watcher")
        self._num_steps = 0
        self._buffers_mb = 0.0
        self._next_look = 0.0
        self._times_over = 0

    def serve(self) -> bool:
        """Obey the client until it closes its end or the job is over; whether every process could be ended."""
        left, is_over = 0, False
        try:
            with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
                while not is_over:
                    self._idle()
                    message = wire.receive(self._job)
                    if message.header["do"] == "start":
                        header, blobs = self._step(message)
                        is_over = header.pop("last")
                        if is_over:
                            left = self._held.end()
                        if left:
                            header |= {"status": "broken", "detail": f"{left} processes could not be ended"}
                        wire.send(self._job, header, blobs=blobs)
                    elif message.header["do"] in _FILE_ORDERS:
                        self._move_files(message)
        finally:
            if not is_over:
                left = self._held.end()
        return not left

    def _idle(self) -> None:
        """Wait for the client; what earlier steps left running stays within the job's limits."""
        before: Usage | None = None
        while self._num_steps and (before is None or before.tasks):
            self._held.reap()
            usage = self._held.tree.usage()
            before = before or usage
            if self._excess(usage, before, self._limits):
                self._held.kill_step()
            if select.select([self._job], [], [], _REST_TICK_S)[0]:
                return

    def _move_files(self, order: wire.Message) -> None:
        order.header["collect_bytes"] = self._limits.file_mb << 20
        answer = self._held.move_files(order)
        wire.send(self._job, answer.header, blobs=answer.blobs)

    def _step(self, request: wire.Message) -> tuple[dict[str, Any], list[bytes]]:
        header, (stdin, *files) = request.header, request.blobs
        limits = Limits(**header["limits"])
        pipes = _Pipes(stdin, room=limits.output_kb << 10)
        before = self._held.tree.usage() if self._num_steps else _NOTHING
        watch = _Watch(
            limits=limits,
            pipes=pipes,
            before=before,
            is_interruptible=header["is_interruptible"],
            lingers=header["lingers"],
        )
        self._num_steps += 1
        try:
            self._held.start(
                {**header, "collect_bytes": limits.file_mb << 20},
                files,
                [*pipes.theirs, *request.descriptors],
            )
            pipes.give()
            for descriptor in request.descriptors:
                os.close(descriptor)
            answer = self._until_ended(watch)
            pipes.drain()
        finally:
            pipes.close()
        result = _result(watch, answer)
        result["waited_s"] = max(0.0, watch.usage.waited_s - before.waited_s)
        result |= {"last": not header["lingers"], "files": answer.header.get("files", [])}
        return result, [bytes(pipes.output["stdout"]), bytes(pipes.output["stderr"]), *answer.blobs]

    def _until_ended(self, watch: _Watch) -> wire.Message:
        with selectors.DefaultSelector() as selector:
            selector.register(self._held.fileno(), selectors.EVENT_READ, "ended")
            selector.register(self._job, selectors.EVENT_READ, "job")
            for descriptor, name in watch.pipes.ours.items():
                event = selectors.EVENT_WRITE if name == "stdin" else selectors.EVENT_READ
                selector.register(descriptor, event, "pipe")
            next_tick = time.monotonic() + _TICK_S
            while True:
                ready = {
                    key.fd: key.data for key, _ in selector.select(max(0.0, next_tick - time.monotonic()))
                }
                for descriptor in [fd for fd, what in ready.items() if what == "pipe"]:
                    if descriptor in watch.pipes.ours and not watch.pipes.move(descriptor):
                        selector.unregister(descriptor)
                if watch.pipes.is_full:
                    self._kill(watch, "output_limit", f"more than {watch.limits.output_kb} kB of output")
                if "job" in ready.values():
                    self._obey(watch)
                if "ended" in ready.values() or self._held.has_ended():
                    return self._held.answer()
                if (now := time.monotonic()) >= next_tick:
                    self._tick(watch)
                    # Never more than half of the time, however many processes there are to look at.
                    took_s = time.monotonic() - now
                    next_tick = now + took_s + max(took_s, _REST_TICK_S if watch.rests else _TICK_S)

    def _obey(self, watch: _Watch) -> None:
        message = wire.receive(self._job)
        order = message.header
        if order["do"] in _FILE_ORDERS:
            self._move_files(message)
        elif order["do"] == "kill":
            self._kill(watch, "killed", "ended by its caller")
        elif order["do"] == "budget":
            watch.renew(Limits(**order["limits"]), self._held.tree.usage())
            watch.rests, watch.warned = False, ("", "")
            watch.asked = watch.before.cpu_s, watch.began
        elif order["do"] == "rest":
            usage = self._held.tree.usage()
            watch.rests = True
            used = {
                "cpu_s": usage.cpu_s - watch.before.cpu_s,
                "wall_s": watch.wall_s,
                "peak_mb": watch.peak_mb,
            }
            wire.send(self._job, {"rests": used})

    def _tick(self, watch: _Watch) -> None:
        if watch.killed_at:
            self._press(watch)
            return
        self._held.reap()
        usage = watch.usage = self._held.tree.usage()
        watch.peak_mb = max(watch.peak_mb, usage.rss_mb)
        if not self._has_watcher:
            return
        if excess := self._excess(usage, watch.before, watch.limits):
            self._kill(watch, *excess)
        elif watch.wall_s > watch.limits.net_s and not watch.rests:
            self._judge_wall(watch)

    def _press(self, watch: _Watch) -> None:
        """Kill again what was not gone at once."""
        passed_s = time.monotonic() - watch.killed_at
        if passed_s > END_S:
            raise RuntimeError(f"the step did not end within {END_S:g} s of being killed")
        if passed_s > (END_S / 2 if watch.lingers else _PATIENCE_S):
            self._held.kill_all()
        else:
            self._held.kill_step()

    def _excess(self, usage: Usage, before: Usage, limits: Limits) -> tuple[str, str] | None:
        """The limit that is exceeded, if any, and by how much."""
        cpu_s = usage.cpu_s - before.cpu_s
        if cpu_s > limits.cpu_s:
            return "cpu_limit", f"{cpu_s:.2f} s of CPU, limit {limits.cpu_s:g} s"
        if usage.tasks > limits.processes:
            return "process_limit", f"{usage.tasks} processes, limit {limits.processes}"
        if (used := self._disk_mb()) > limits.disk_mb:
            return "disk_limit", f"{used:.0f} MB on disk, limit {limits.disk_mb} MB"
        if used := self._excess_memory(usage, limits):
            return "memory_limit", f"{used:.0f} MB, limit {limits.memory_mb} MB"
        return None

    def _disk_mb(self) -> float:
        """MB on disk, 0 between two looks; what the kernel holds for pipes and sockets is known afterwards, too."""
        began = time.monotonic()
        if began < self._next_look:
            return 0.0
        try:
            open_files = self._held.tree.open_files()
        except PermissionError:
            return math.inf
        self._buffers_mb = buffers_mb(open_files)
        used = self._held.disk_mb(open_files)
        now = time.monotonic()
        self._next_look = now + max(_LOOK_S, (now - began) / _LOOK_SHARE)
        return used

    def _excess_memory(self, usage: Usage, limits: Limits) -> float:
        """MB in use when they are too many, with what is shared counted once; else 0."""
        used = usage.rss_mb + self._buffers_mb
        if used > limits.memory_mb:
            used = self._held.tree.proportional_mb() + self._buffers_mb
        # Twice: a child has its parent's memory, counted for both, for a moment until it executes its program.
        self._times_over = self._times_over + 1 if used > limits.memory_mb else 0
        return used if self._times_over > 1 else 0.0

    def _judge_wall(self, watch: _Watch) -> None:
        """A program that was ready to run and got no core is not to blame."""
        waited = watch.usage.waited_s - watch.before.waited_s
        if waited > _STARVED_SHARE * watch.wall_s:
            detail = f"waited {waited:.1f} s of {watch.wall_s:.1f} s for a core: the machine is overloaded"
            self._kill(watch, "broken", detail)
        else:
            self._kill(watch, "wall_limit", f"{watch.wall_s:.1f} s, limit {watch.limits.net_s:g} s")

    def _kill(self, watch: _Watch, verdict: str, detail: str) -> None:
        if watch.killed_at:
            return
        if watch.is_interruptible and not watch.warned[0] and verdict in ("cpu_limit", "wall_limit"):
            watch.warned = verdict, detail
            watch.renew(replace(watch.limits, cpu_s=_GRACE_S / 4, wall_s=_GRACE_S), self._held.tree.usage())
            wire.send(self._job, {"notice": verdict, "detail": detail})
            self._held.interrupt()
            return
        watch.verdict, watch.detail = watch.warned if watch.warned[0] else (verdict, detail)
        watch.killed_at = time.monotonic()
        self._held.kill_step()


def _result(watch: _Watch, answer: wire.Message) -> dict[str, Any]:
    header = answer.header
    result = {
        "wall_s": watch.wall_s,
        "cpu_s": max(header.get("cpu_s", 0.0), watch.usage.cpu_s - watch.before.cpu_s),
        "peak_mb": max(watch.peak_mb, header.get("peak_mb", 0.0)),
        "truncated": watch.pipes.is_full,
        "detail": watch.detail,
    }
    for problem in ("refused", "broken"):
        if problem in header and not watch.verdict:
            return {**result, "status": problem, "detail": header[problem]}
    # Without an answer it is the verdict that killed who would have given it.
    status, limits = header.get("ended", int(signal.SIGKILL)), watch.limits
    exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    result |= {"exit_code": exit_code, "signal": number}
    if watch.verdict:
        return {**result, "status": watch.verdict}
    if watch.pipes.is_full:
        return {**result, "status": "output_limit", "detail": f"more than {limits.output_kb} kB of output"}
    if number == signal.SIGXCPU or (number == signal.SIGKILL and result["cpu_s"] > limits.cpu_s):
        return {**result, "status": "cpu_limit", "detail": f"{result['cpu_s']:.2f} s of CPU"}
    if number == signal.SIGXFSZ:
        return {**result, "status": "disk_limit", "detail": f"a file of more than {limits.file_mb} MB"}
    return {**result, "status": "signalled" if exit_code is None else "exited"}
