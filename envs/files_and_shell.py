"""A small repository to mend, in the sandbox, with hidden tests as the score.

Reads rows with the columns
- `files`: the repository, a mapping from paths to texts (or JSON of one);
- `tests`: the hidden tests and what else they need, likewise;
- `fail_to_pass`, `pass_to_pass`: lists of `file::test` (or JSON of them);
- `plugins` (optional): plugins of pytest that the tests need;
- `gold` (optional): the right change, a mapping from paths to new texts, null for a file that goes. It is for
  `check_gold` alone.

The model works in the folder `repo` of a sandbox: no network, nothing of this machine. The score is 1 when all of
`fail_to_pass` pass and none of `pass_to_pass` is broken (`envs.hidden_tests`).
Prove your rows before a run: `check_gold(row, sandbox=default_sandbox())`.
"""

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from envs.hidden_tests import FOLDER, Files, Task, run_tests, score
from envs.sessions import shortened, shown, step_limits
from rlhf.errors import DataError, SandboxError
from rlhf.interfaces import Context
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Limits, Program, check_names
from rlhf.sandbox.session import Session
from rlhf.types import Prompt

MAX_FILES = 5_000
MAX_TREE_MB = 32
_TO_COLLECT, _TO_TEST = 0.15, 0.7
"""Shares of the time for the score: the sandbox ends what takes longer, which is a score; the episode's end is none."""
_COLLECT = f"""
import os, sys, tarfile
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.GNU_FORMAT) as archive:
    for folder, folders, files in os.walk("{FOLDER}"):
        for name in files:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                archive.add(path, recursive=False)
"""


class FilesAndShell:
    """Tools `shell`, `read`, `write`, `edit`. Scores 1 for a resolved issue, else 0."""

    uses_sandbox = True

    def __init__(self, *, memory_mb: int = 1024, processes: int = 64, strict: bool = True) -> None:
        self._memory_mb = memory_mb
        self._processes = processes
        self._is_strict = strict
        self._session: Session | None = None

    def reset(self, prompt: Prompt, context: Context) -> None:
        """The prompt's own messages; the repository is there. DataError for a row that has not what is read here."""
        self._task = Task.of_row(prompt.columns, is_strict=self._is_strict)
        if not self._task.fail_to_pass:
            raise DataError(f"row {prompt.id}: `fail_to_pass` names no test, expected one or more.")
        self._context = context
        limits = step_limits(context, memory_mb=self._memory_mb, processes=self._processes)
        self._session = Session(context.sandbox, "shell", limits=limits)
        self._session.write({f"{FOLDER}/{name}": data for name, data in self._task.files.items()})
        self._session.exec(f"cd {FOLDER}")

    def shell(self, command: str) -> str:
        """Run a command line in the repository. The working directory and exported variables are kept between calls.

        Args:
            command: the command line, for sh
        """
        return shown(self._open.exec(command), max_bytes=self._context.limits.max_tool_result_bytes)

    def read(self, path: str, first_line: int = 1, num_lines: int = 500) -> str:
        """Show a file, with the numbers of its lines.

        Args:
            path: relative to the repository
            first_line: counted from 1
            num_lines: how many
        """
        lines = self._text(path).splitlines()
        first = max(1, first_line)
        chosen = lines[first - 1 : first - 1 + max(0, num_lines)]
        text = "\n".join(f"{number:6}\t{line}" for number, line in enumerate(chosen, first))
        rest = len(lines) - (first - 1) - len(chosen)
        more = f"\n({rest} more lines)" if chosen and rest > 0 else ""
        limit = self._context.limits.max_tool_result_bytes
        return shortened(text.encode(), limit) + more if chosen else f"(the file has {len(lines)} lines)"

    def write(self, path: str, content: str) -> str:
        """Make a file, or replace what it holds.

        Args:
            path: relative to the repository
            content: all of it
        """
        self._open.write({_inside(path): content.encode()})
        return "written"

    def edit(self, path: str, old: str, new: str) -> str:
        """Replace a piece of a file that occurs in it exactly once.

        Args:
            path: relative to the repository
            old: the piece, to the letter
            new: what it becomes
        """
        text = self._text(path)
        found = text.count(old) if old else 0
        if found != 1:
            raise ValueError(f"`old` occurs {found} times in {path}, expected once")
        self._open.write({_inside(path): text.replace(old, new).encode()})
        return "replaced"

    def score(self, context: Context) -> float:
        """Whether the issue is resolved. The shares are logged."""
        limits = limits_of_tests(context.limits.score_s, memory_mb=self._memory_mb, processes=self._processes)
        left = self._left()
        # Its place in the sandbox is free for the tests: were it kept, episodes could wait for each other for ever.
        self.close()
        if left is None:
            context.log(resolved=0.0)
            return 0.0
        results = run_tests(self._task, left, sandbox=context.sandbox, limits=limits)
        found = score(self._task, results)
        context.log(**found)
        return found["resolved"]

    def close(self) -> None:
        """End the session with all that runs in it."""
        if self._session is not None:
            self._session.close()

    @property
    def _open(self) -> Session:
        assert self._session is not None
        return self._session

    def _text(self, path: str) -> str:
        return self._open.read(_inside(path)).decode(errors="replace")

    def _left(self) -> dict[str, bytes] | None:
        """The files that the model left, links left out; None when they are too many, or it keeps them from us."""
        wall_s = _TO_COLLECT * self._context.limits.score_s
        limits = Limits(
            cpu_s=wall_s / 4, wall_s=wall_s, memory_mb=self._memory_mb, output_kb=MAX_TREE_MB << 10
        )
        execution = self._open.run(Program(code=_COLLECT), limits=limits)
        if execution.status == "broken":
            raise SandboxError(f"the sandbox failed when files were fetched: {execution.detail}")
        return unpacked(execution.stdout) if execution.succeeded and not execution.truncated else None


@dataclass(frozen=True, slots=True)
class GoldCheck:
    """What the right change does to the tests of a row."""

    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    pass_to_fail: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        """Whether the row can be trained on: it mends some test, breaks none, and the row names the right ones."""
        return not self.problems


def check_gold(
    row: Mapping[str, Any], *, sandbox: Sandbox, seconds: float = 60.0, strict: bool = True
) -> GoldCheck:
    """Run all tests of the row's files before and after its `gold` change.

    A row that names no tests yet gets all files of `tests`; what is found can be written into it.
    """
    named = Task.of_row(row, is_strict=strict)
    task = _with_tests(named)
    limits = limits_of_tests(seconds, memory_mb=1024, processes=64)
    passed, problems = [], []
    for left in (task.files, _changed(task.files, row)):
        results = run_tests(task, left, sandbox=sandbox, limits=limits, is_all=True)
        problems.append(results.detail)
        passed.append({test for test, outcome in results.outcomes.items() if outcome == "passed"})
    before, after = passed
    mended, broken, kept = after - before, before - after, before & after
    problems += [
        "the right change makes no test pass that failed before" if not mended else "",
        f"the right change breaks {sorted(broken)}" if broken else "",
        *(
            f"fail_to_pass names {test}, which it does not mend"
            for test in named.fail_to_pass
            if test not in mended
        ),
        *(
            f"pass_to_pass names {test}, which does not pass before and after"
            for test in named.pass_to_pass
            if test not in kept
        ),
    ]
    return GoldCheck(
        tuple(sorted(mended)), tuple(sorted(kept)), tuple(sorted(broken)), tuple(filter(None, problems))
    )


def limits_of_tests(seconds: float, *, memory_mb: int, processes: int) -> Limits:
    """Limits of a run of hidden tests that must be over within so many seconds."""
    wall_s = _TO_TEST * seconds
    return Limits(cpu_s=wall_s / 4, wall_s=wall_s, memory_mb=memory_mb, processes=processes)


def unpacked(archive: bytes) -> dict[str, bytes] | None:
    """The repository's files in an archive that a model may have written; None when it is none, or too large."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as opened:
            for member in opened:
                if len(files) >= MAX_FILES:
                    return None
                if member.size > len(archive) or member.sparse is not None:
                    return None
                content = opened.extractfile(member) if member.isreg() else None
                if content is None:
                    continue
                folder, _, name = member.name.partition("/")
                check_names([name])
                if folder == FOLDER:
                    files[name] = content.read()
    except (tarfile.TarError, ValueError, OSError, EOFError):
        return None
    return files


def _inside(path: str) -> str:
    """The path in the sandbox of one in the repository."""
    name = str(PurePosixPath(path))
    try:
        check_names([name])
    except ValueError:
        raise ValueError(f"{path!r}: expected a path relative to the repository, without '..'") from None
    return f"{FOLDER}/{name}"


def _with_tests(task: Task) -> Task:
    if task.fail_to_pass or task.pass_to_pass:
        return task
    files = [
        name for name in task.tests if PurePosixPath(name).name.startswith("test_") and name.endswith(".py")
    ]
    return replace(task, fail_to_pass=tuple(files))


def _changed(files: Files, row: Mapping[str, Any]) -> Files:
    gold = row.get("gold")
    gold = json.loads(gold) if isinstance(gold, str) else gold
    if not isinstance(gold, Mapping) or not gold:
        raise DataError(
            f"column `gold` is {gold!r:.80}, expected a mapping from paths to new texts (null: removed)."
        )
    changed = {**files, **{name: str(text).encode() for name, text in gold.items() if text is not None}}
    return {name: data for name, data in changed.items() if gold.get(name, "") is not None}
