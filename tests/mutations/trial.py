"""Plants a bug in a copy of the checkout and runs the tests that should notice."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.mutations.mutation import Mutation

ROOT = Path(__file__).parents[2]
COPIED = ("rlhf", "rewards", "envs", "tests", "pyproject.toml")
PYTEST = (
    "-x",
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "tests.mutations.no_shrinking",
    "--no-header",
    "--tb=line",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one mutation."""

    mutation: Mutation
    caught_by: str | None
    """The first test that failed, as file::test; None where all passed."""
    reason: str
    """What that test found, in short."""
    seconds: float
    problem: str | None = None
    """Why there is no verdict: the tests did not run as they should."""

    @property
    def is_failure(self) -> bool:
        """A bug that lives, an equivalent that was caught, or no verdict."""
        survived = self.caught_by is None
        return self.problem is not None or survived == (self.mutation.equivalent is None)


@dataclass(frozen=True, slots=True)
class Copy:
    """A temporary folder with what the tests of a mutant need, and a process that runs them there."""

    folder: Path
    process: subprocess.Popen[str]

    def run_tests(self, tests: tuple[str, ...]) -> tuple[int, str, float]:
        """Exit code, output and seconds of pytest up to the first failure."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([*PYTEST, *tests]) + "\n")
        self.process.stdin.flush()
        code, output, seconds = json.loads(self.process.stdout.readline())
        return code, output, seconds


@contextmanager
def checkout_copy() -> Iterator[Copy]:
    """A copy of the checkout, which itself is only read."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
        with subprocess.Popen(
            [sys.executable, "tests/mutations/warm.py"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "COLUMNS": "400"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            yield Copy(Path(folder), process)


def try_all(mutations: list[Mutation], *, jobs: int) -> Iterator[Verdict]:
    """Verdicts as they come, `jobs` at a time, each job in a copy of its own."""
    with ExitStack() as stack, ThreadPoolExecutor(jobs) as pool:
        free: SimpleQueue[Copy] = SimpleQueue()
        for _ in range(jobs):
            free.put(stack.enter_context(checkout_copy()))

        def attempt(mutation: Mutation) -> Verdict:
            copy = free.get()
            try:
                return try_one(mutation, copy)
            finally:
                free.put(copy)

        waiting = [pool.submit(attempt, mutation) for mutation in mutations]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def try_one(mutation: Mutation, copy: Copy) -> Verdict:
    """The verdict on one mutation; the copy is clean again afterwards."""
    file = copy.folder / mutation.file
    source = file.read_text(encoding="utf-8")
    file.write_text(mutation.applied(source), encoding="utf-8")
    try:
        code, output, seconds = copy.run_tests(mutation.tests)
    finally:
        file.write_text(source, encoding="utf-8")
    failed = re.search(r"^FAILED (\S+?::\w+)\S*(?: - )?(.*)", output, re.MULTILINE)
    problem = None
    if code not in (0, 1) or (code == 1) != (failed is not None):
        problem = f"pytest ended with {code}: {' | '.join(output.strip().splitlines()[-3:])[-300:]}"
    return Verdict(
        mutation=mutation,
        caught_by=failed.group(1) if failed else None,
        reason=failed.group(2)[:80] if failed else "",
        seconds=seconds,
        problem=problem,
    )
