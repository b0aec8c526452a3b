"""Thousands of mixed jobs through one sandbox: memory, descriptors, mounts and files before and after.

`python benchmarks/sandbox_soak.py --jobs 10000` prints a line per thousand jobs. Nothing in it may grow.
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Limits, Program

LIMITS = Limits(cpu_s=0.2, wall_s=0.6, memory_mb=200, processes=10, file_mb=4, disk_mb=8, output_kb=64)
JOBS = (
    Program(code="print(1)"),
    Program(code="import sys\nsys.stdout.write(sys.stdin.read())", stdin=b"x" * 10_000),
    Program(code="open('f', 'w').write('x' * 1000)", collect=("f",)),
    Program(code="1 / 0"),
    Program(argv=("sh", "-c", "echo hi; exit 3"), files={"a/b": b"x"}),
    Program(code="import os\nfor _ in range(3):\n    if os.fork() == 0: os.setsid(); os._exit(0)"),
    Program(code="import os\nos.kill(os.getpid(), 11)"),
    Program(code="while True: pass"),
    Program(code="import os\nwhile True: os.write(1, b'x' * 4096)"),
    Program(argv=("no-such-program",)),
)


def main() -> None:
    """Run the jobs and print what there is after every tenth of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=4)
    arguments = parser.parse_args()
    with Sandbox() as sandbox, ThreadPoolExecutor(arguments.at_once) as pool:
        _say(f"tier {sandbox.tier}; of every ten jobs one burns its CPU limit, one floods its output")
        _say(
            "jobs | jobs/s | client MB | launcher MB | client descriptors | launcher descriptors | mounts | files"
        )
        part = max(1, arguments.jobs // 10)
        for first in range(0, arguments.jobs, part):
            began = time.monotonic()
            programs = [JOBS[i % len(JOBS)] for i in range(first, first + part)]
            broken = sum(
                e.status == "broken" for e in pool.map(lambda p: sandbox.run(p, limits=LIMITS), programs)
            )
            _say(f"{first + part} | {part / (time.monotonic() - began):.0f} | {_state()} | broken {broken}")


def _state() -> str:
    me = psutil.Process()
    launchers = [p for p in me.children() if p.status() != psutil.STATUS_ZOMBIE]
    mounts = Path("/proc/self/mountinfo").read_text().count("\n")
    files = len(list(Path(tempfile.gettempdir()).glob("rlhf-sandbox-*")))
    memory = [sum(p.memory_info().rss for p in group) / 2**20 for group in ([me], launchers)]
    descriptors = [len(os.listdir("/proc/self/fd")), sum(p.num_fds() for p in launchers)]
    return " | ".join(map(str, [*(f"{mb:.1f}" for mb in memory), *descriptors, mounts, files]))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
