"""Thousands of mixed jobs through one sandbox: memory, descriptors, mounts and files before and after.

`python benchmarks/sandbox_soak.py --jobs 10000` prints a line per thousand jobs. Nothing in it may grow.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Execution, Limits, Program
from rlhf.sandbox.policy import Policy
from rlhf.sandbox.session import Session

LIMITS = Limits(cpu_s=0.5, wall_s=1.5, memory_mb=200, processes=10, file_mb=4, disk_mb=8, output_kb=64)
STEP = "session"
JOBS = (
    (Program(code="print(1)"), "exited"),
    (Program(code="import sys\nsys.stdout.write(sys.stdin.read())", stdin=b"x" * 10_000), "exited"),
    (Program(code="open('f', 'w').write('x' * 1000)", collect=("f",)), "exited"),
    (Program(code="1 / 0"), "exited"),
    (Program(argv=("sh", "-c", "echo hi; exit 3"), files={"a/b": b"x"}), "exited"),
    (
        Program(code="import os\nfor _ in range(3):\n    if os.fork() == 0: os.setsid(); os._exit(0)"),
        "exited",
    ),
    (Program(code="import os\nos.kill(os.getpid(), 11)"), "signalled"),
    (Program(code="while True: pass"), "cpu_limit"),
    (Program(code="import os\nwhile True: os.write(1, b'x' * 4096)"), "output_limit"),
    (Program(argv=("no-such-program",)), "refused"),
    (STEP, "exited"),
    (Program(code="x = bytearray(1 << 30)"), "exited"),
)
"""Programs and their verdicts; a session stands for opening it, two steps and a file."""


@dataclass(frozen=True)
class State:
    """What there is after a number of jobs, none running."""

    jobs: int
    jobs_per_s: float
    client_mb: float
    launcher_mb: float
    client_descriptors: int
    launcher_descriptors: int
    processes: int
    mounts: int
    files: int
    unexpected: int
    """Verdicts other than the job's own, as on a machine too busy for its limits; `broken` ones among them."""
    broken: int
    """Without those that got no core."""


def soak(sandbox: Sandbox, *, jobs: int, parts: int = 10, at_once: int = 4) -> Iterator[State]:
    """Run the mixture; the state before the first job and after each part."""
    sandbox.run(Program(code="pass"))
    files = len(_files())
    yield _state(0, 0.0, [], files)
    with ThreadPoolExecutor(at_once) as pool:
        part = max(1, jobs // parts)
        for first in range(0, jobs, part):
            began = time.monotonic()
            numbers = range(first, first + part)
            ends = list(pool.map(lambda number: _run(sandbox, number), numbers))
            yield _state(first + part, part / (time.monotonic() - began), ends, files)


def _run(sandbox: Sandbox, number: int) -> tuple[str, str]:
    job, expected = JOBS[number % len(JOBS)]
    if isinstance(job, Program):
        return _ending(sandbox.run(job, limits=LIMITS)), expected
    kind = "python" if number % (2 * len(JOBS)) < len(JOBS) else "shell"
    with Session(sandbox, kind, limits=LIMITS) as session:
        session.write({"file": b"x"})
        session.exec("x = 1" if kind == "python" else "X=1; sleep 100 >/dev/null 2>&1 &")
        return _ending(session.exec("x" if kind == "python" else "cat file")), expected


def _ending(execution: Execution) -> str:
    is_starved = execution.status == "broken" and "for a core" in execution.detail
    return "starved" if is_starved else execution.status


def _files() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("rlhf-sandbox-*"))


def _state(jobs: int, jobs_per_s: float, ends: list[tuple[str, str]], files_before: int) -> State:
    # The last jobs' monitors are clearing up.
    time.sleep(0.5)
    me = psutil.Process()
    others = [process for process in me.children() if process.status() != psutil.STATUS_ZOMBIE]
    return State(
        jobs=jobs,
        jobs_per_s=round(jobs_per_s, 1),
        client_mb=round(me.memory_full_info().uss / 2**20, 1),
        launcher_mb=round(sum(process.memory_full_info().uss for process in others) / 2**20, 1),
        client_descriptors=me.num_fds(),
        launcher_descriptors=sum(process.num_fds() for process in others),
        processes=len(me.children(recursive=True)),
        mounts=Path("/proc/self/mountinfo").read_text(encoding="utf-8").count("\n"),
        files=len(_files()) - files_before,
        unexpected=sum(status != expected for status, expected in ends),
        broken=sum(status == "broken" for status, _ in ends),
    )


def main() -> None:
    """Run the jobs and print what there is after every tenth of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--tier", choices=("namespaces", "landlock"), default=None)
    arguments = parser.parse_args()
    with Sandbox(Policy(tier=arguments.tier)) as sandbox:
        _say(f"tier {sandbox.tier}, {os.cpu_count()} cores, {arguments.at_once} jobs at once")
        for number, state in enumerate(soak(sandbox, jobs=arguments.jobs, at_once=arguments.at_once)):
            figures = asdict(state)
            if not number:
                _say(" | ".join(figures))
            _say(" | ".join(map(str, figures.values())))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
