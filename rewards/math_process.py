r"""Comparison in processes that can be killed: what one answer costs is bounded, whichever thread asks.

    grading process -- control socket -- parent: imports sympy once, forks, buries; single thread
          \-- a socket each -- workers: forks of the parent (10 ms), each compares many answers

A comparison that uses up its CPU seconds ends its worker by a signal that nothing handles, in the kernel. The control
socket is the parent's lifeline: when the grading process is gone, however it ended, the parent kills its group.
(PR_SET_PDEATHSIG would fire when the starting *thread* ends.)
"""

import atexit
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from rewards.math_equality import EXACT, Rules, Verdict
from rewards.math_equality import compare as compare_structure
from rlhf.errors import RewardError

CPU_S = 1.0
"""What one comparison may compute: all of an answer's members together."""
NET_S = 10.0
"""Wall seconds after which a worker is taken for starved or stuck. Never a verdict on the answer."""
START_S = 120.0
MEMORY_BYTES = 1 << 30
JOBS_OF_A_WORKER = 2000
_MAIN = "from rewards.math_process import serve; serve()"
_ITS_OWN_FAULT = (signal.SIGPROF, signal.SIGSEGV, signal.SIGABRT)
"""How a worker dies of the expression it was given."""

_FORBIDDEN = frozenset(
    ["os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "socket.__new__"]
)


class _NeedsSymbolsError(Exception):
    """Text and structure do not decide: ask a worker."""


def compare(gold: str, answer: str, rules: Rules = EXACT, *, by_text: bool = True) -> Verdict:
    """Whether `answer` is `gold`: here as far as numbers and structure decide, else in a worker.

    RewardError when workers cannot be started or die of something else than the expression.
    """
    try:
        return compare_structure(gold, answer, rules, symbolic=_needs_symbols, by_text=by_text)
    except _NeedsSymbolsError:
        job = {
            "gold": gold,
            "answer": answer,
            "by_text": by_text,
            "tolerance": str(rules.tolerance),
            "relative_tolerance": str(rules.relative_tolerance),
            "simplified": rules.simplified,
        }
        return _OWNER.ask(job)


def start() -> None:
    """Start the parent and a first worker, half a second. RewardError with the reason when they cannot be had."""
    compare("x+1", "1+x")


def stop() -> None:
    """End the parent and its workers; the next comparison starts others."""
    _OWNER.drop()


def _needs_symbols(_gold: str, _answer: str, _rules: Rules) -> Verdict:
    raise _NeedsSymbolsError


@dataclass(slots=True, eq=False)
class _Worker:
    pid: int
    connection: socket.socket
    jobs: int = 0

    def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        self.jobs += 1
        self.connection.settimeout(NET_S)
        self.connection.sendall(_line(job))
        reply = b""
        while not reply.endswith(b"\n"):
            received = self.connection.recv(4096)
            if not received:
                raise EOFError("the worker ended")
            reply += received
        return dict(json.loads(reply))


class _BrokenError(Exception):
    """The parent is gone, or out of step with us; the message says how it ended."""


class _Pool:
    """The parent and its workers, for all threads of this process. After `close` or a _BrokenError it is spent."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        source = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
                start_new_session=True,
            )
        self.is_broken = False
        self._control.settimeout(START_S)
        self._talking = threading.Lock()
        self._places = threading.BoundedSemaphore(usable_cpus())
        self._idle: list[_Worker] = []

    def ask(self, job: Mapping[str, Any]) -> Verdict:
        with self._places:
            for _ in range(2):
                worker = self._worker()
                try:
                    reply = worker.ask(job)
                except (OSError, EOFError):
                    if self._bury(worker) in _ITS_OWN_FAULT:
                        return Verdict.TOO_LARGE
                    continue
                except BaseException:
                    self._bury(worker)
                    raise
                if worker.jobs < JOBS_OF_A_WORKER:
                    self._idle.append(worker)
                else:
                    self._bury(worker)
                return Verdict(reply["verdict"])
        raise RewardError(
            f"two workers that compared {str(job['answer'])[:80]!r} were killed from outside or gave no answer in "
            f"{NET_S:g} s: is the machine out of memory or far too busy?"
        )

    def _worker(self) -> _Worker:
        try:
            return self._idle.pop()
        except IndexError:
            return self._fork()

    def _fork(self) -> _Worker:
        reply, descriptors = self._tell({"fork": True})
        if "failed" in reply:
            self.is_broken = True
            raise RewardError(
                "symbolic answers cannot be compared: importing math-verify failed (pip install "
                f"'rlhf-loop[content]' brings it).\n{reply['failed']}"
            )
        return _Worker(pid=reply["pid"], connection=socket.socket(fileno=descriptors[0]))

    def _bury(self, worker: _Worker) -> int:
        """Kill a worker if it still lives; the signal that ended it."""
        worker.connection.close()
        return int(self._tell({"bury": worker.pid})[0]["signal"])

    def _tell(self, message: Mapping[str, Any]) -> tuple[dict[str, Any], Sequence[int]]:
        with self._talking:
            try:
                self._control.sendall(_line(message))
                reply, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
                return dict(json.loads(reply)), descriptors
            except (OSError, ValueError) as error:
                self.is_broken = True
                raise _BrokenError(f"{error}, exit status {self._process.poll()}") from error
            except BaseException:
                self.is_broken = True
                raise

    def close(self) -> None:
        """SIGKILL the parent and its workers."""
        # Reaped only after the kill: until then the group id cannot belong to anyone else.
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.abandon()

    def abandon(self) -> None:
        """Close our ends. In a fork of the owner that is all: the processes are not its own."""
        self._control.close()
        for worker in self._idle:
            worker.connection.close()


class _Owner:
    """The pool of this process: made at the first question, made again when it broke, never shared with a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: _Pool | None = None

    def pool(self) -> _Pool:
        with self._lock:
            if self._pool is not None and self._pool.is_broken:
                self._pool.close()
                self._pool = None
            if self._pool is None:
                self._pool = _Pool()
            return self._pool

    def ask(self, job: Mapping[str, Any]) -> Verdict:
        try:
            return self.pool().ask(job)
        except _BrokenError:
            pass
        try:
            return self.pool().ask(job)
        except _BrokenError as error:
            raise RewardError(f"the process that compares symbolic answers ended twice ({error})") from error

    def drop(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.close()
            self._pool = None

    def forget(self) -> None:
        pool, self._pool, self._lock = self._pool, None, threading.Lock()
        if pool is not None:
            pool.abandon()


_OWNER = _Owner()
os.register_at_fork(after_in_child=_OWNER.forget)
atexit.register(stop)


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def usable_cpus() -> int:
    """How many workers compute at once, at most."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def serve() -> None:
    """The parent's life, with the descriptor of its control socket on the command line."""
    control = int(sys.argv[1])
    os.set_inheritable(control, False)
    # What the grading process ignores is inherited: ignored children could not be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    failure = _warm()
    with socket.socket(fileno=control) as connection, connection.makefile("rb") as messages:
        for message in map(json.loads, messages):
            if "bury" in message:
                os.kill(message["bury"], signal.SIGKILL)
                _, status = os.waitpid(message["bury"], 0)
                connection.sendall(_line({"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}))
            elif failure:
                connection.sendall(_line({"failed": failure}))
            else:
                _fork_worker(connection)
    os.killpg(0, signal.SIGKILL)


def _warm() -> str:
    """Import sympy and fill its caches, which every fork then shares; what went wrong, if anything."""
    try:
        from rewards.math_symbols import equal

        equal(r"\frac{x+1}{2}", r"\frac{1}{2}+\frac{x}{2}", EXACT)
    except Exception:  # noqa: BLE001
        return traceback.format_exc()[-1500:]
    gc.collect()
    gc.freeze()
    return ""


def _fork_worker(control: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        os.close(control.fileno())
        ours.close()
        try:
            _work(theirs)
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        socket.send_fds(control, [_line({"pid": pid})], [ours.fileno()])


def _work(connection: socket.socket) -> None:
    confine()
    with connection.makefile("rb") as jobs:
        for job in map(json.loads, jobs):
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            verdict = _decide(job)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.sendall(_line({"verdict": verdict.value}))


def _decide(job: Mapping[str, Any]) -> Verdict:
    from rewards.math_symbols import equal

    rules = Rules(
        tolerance=Fraction(job["tolerance"]),
        relative_tolerance=Fraction(job["relative_tolerance"]),
        simplified=job["simplified"],
    )
    try:
        return compare_structure(job["gold"], job["answer"], rules, symbolic=equal, by_text=job["by_text"])
    except (MemoryError, RecursionError):
        return Verdict.TOO_LARGE
    except Exception:  # noqa: BLE001
        # The gold was compared with itself when it was read, so what sympy stumbled over is the answer.
        return Verdict.DIFFERENT


def confine() -> None:
    """Leave this process nothing to do but compute: little memory, no files, no programs, no code from text."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if sys.platform == "linux":  # macOS refuses it
        limits[resource.RLIMIT_AS] = MEMORY_BYTES
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    # Sympy compiles one template of its own, by the number of a polynomial's symbols; no answer's text is in it.
    is_text = event == "compile" and str(arguments[1]).startswith("<")
    if event in _FORBIDDEN or (is_text and sys._getframe(1).f_globals["__name__"] != "sympy.polys.monomials"):
        raise PermissionError(f"{event} in a process that only compares answers")
