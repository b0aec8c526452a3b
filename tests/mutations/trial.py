"""Plants a bug in a copy of the checkout and runs the tests that should notice."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.mutations.mutation import Mutation

ROOT = Path(__file__).parents[2]
COPIED = ("rlhf", "rewards", "tests", "pyproject.toml")
DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one mutation."""

    mutation: Mutation
    caught_by: str | None
    """The first test that failed, as file::test; None where all passed."""
    seconds: float
    problem: str | None = None
    """Why there is no verdict: the tests did not run as they should."""

    @property
    def is_failure(self) -> bool:
        """A bug that lives, an equivalent that was caught, or no verdict."""
        survived = self.caught_by is None
        return self.problem is not None or survived == (self.mutation.equivalent is None)


@contextmanager
def checkout_copy() -> Iterator[Path]:
    """A temporary folder with what the tests of a mutant need; the checkout itself is only read."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
        yield Path(folder)


def try_all(mutations: list[Mutation], *, jobs: int) -> Iterator[Verdict]:
    """Verdicts as they come, `jobs` at a time, each job in a copy of its own."""
    with ExitStack() as stack, ThreadPoolExecutor(jobs) as pool:
        free: SimpleQueue[Path] = SimpleQueue()
        for _ in range(jobs):
            free.put(stack.enter_context(checkout_copy()))

        def attempt(mutation: Mutation) -> Verdict:
            folder = free.get()
            try:
                return try_one(mutation, folder)
            finally:
                free.put(folder)

        waiting = [pool.submit(attempt, mutation) for mutation in mutations]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def try_one(mutation: Mutation, folder: Path) -> Verdict:
    """The verdict on one mutation in a copy of the checkout, which is clean again afterwards."""
    file = folder / mutation.file
    source = file.read_text(encoding="utf-8")
    started = time.monotonic()
    file.write_text(mutation.applied(source), encoding="utf-8")
    try:
        code, output = run_tests(folder, mutation.tests)
    finally:
        file.write_text(source, encoding="utf-8")
    failed = re.search(r"^FAILED (\S+?::\w+)", output, re.MULTILINE)
    problem = None
    if code not in (0, 1) or (code == 1) != (failed is not None):
        problem = f"pytest ended with {code}: {' | '.join(output.strip().splitlines()[-3:])[-300:]}"
    return Verdict(
        mutation=mutation,
        caught_by=failed.group(1) if failed else None,
        seconds=time.monotonic() - started,
        problem=problem,
    )


def run_tests(folder: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and output of pytest in `folder`, up to the first failure; 124 past the deadline."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tests.mutations.no_shrinking", "--no-header", "--tb=line", *tests]
    # No bytecode: a file changed twice in a second, to the same length, would run as it was before.
    changed = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | changed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return 124, f"not done after {DEADLINE_S:.0f} s"
    return process.returncode, output
