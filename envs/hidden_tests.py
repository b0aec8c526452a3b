"""Tests that the model never sees, run on a copy of the files that it left: fail-to-pass and pass-to-pass.

The rule is SWE-bench's (arXiv 2310.06770): an issue is resolved when every test of `fail_to_pass` passes and none of
`pass_to_pass` is broken. The tests run in a fresh sandbox, to which nothing of the model's comes but its files. There,
what steers pytest (conftest.py, its settings, plugins, compiled files) is put back to what the row has, and so are the
files of all tests named. Tests and code share a process there, as they do wherever pytest grades: printing, exiting,
patching pytest or equality do not help (see `hidden_tests_runner`). What cannot be excluded: code written against this
very runner, which looks through the process for the tests that it is run by.
"""

import json
import secrets
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf.errors import DataError, EpisodeError, SandboxError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Execution, Limits, Program, check_names

FOLDER = "repo"
NUM_CONTROLS = 6
"""Of each file of tests."""
_RUNNER = Path(__file__).with_name("hidden_tests_runner.py")
_STEERING = frozenset(
    {
        "conftest.py",
        "pytest.ini",
        ".pytest.ini",
        "pytest.toml",
        ".pytest.toml",
        "tox.ini",
        "setup.cfg",
        "pyproject.toml",
        "sitecustomize.py",
        "usercustomize.py",
    }
)
_STEERING_SUFFIXES = (".pth", ".pyc", ".pyo", ".so", ".egg-link")
_STEERING_FOLDERS = ("__pycache__", ".egg-info", ".dist-info")
_REPLY_BYTES = 8 << 20
_GRACE_S = 30.0
Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Task:
    """A repository, its hidden tests, and which of them decide."""

    files: Files
    tests: Files
    """Over `files` when tests run: hidden tests and their data."""
    fail_to_pass: tuple[str, ...]
    """`file::test`, as pytest names it."""
    pass_to_pass: tuple[str, ...]
    plugins: tuple[str, ...] = ()
    """Plugins of pytest that the tests need, as modules; no others are loaded."""
    is_strict: bool = True
    """An equality of the repository's own is asked about its own objects only."""

    @classmethod
    def of_row(cls, columns: Mapping[str, Any], *, is_strict: bool = True) -> "Task":
        """What a row's columns say. DataError names the one that cannot be read."""
        task = cls(
            _files(columns, "files"),
            _files(columns, "tests", is_needed=False),
            _names(columns, "fail_to_pass"),
            _names(columns, "pass_to_pass"),
            _names(columns, "plugins"),
            is_strict,
        )
        missing = set(task.test_files) - task.files.keys() - task.tests.keys()
        if missing:
            raise DataError(
                f"the row names tests in {sorted(missing)}, which are in neither `tests` nor `files`."
            )
        return task

    @property
    def test_files(self) -> list[str]:
        """The files of the tests that decide."""
        return sorted({name.partition("::")[0] for name in (*self.fail_to_pass, *self.pass_to_pass)})

    def tree(self, left: Files) -> dict[str, bytes]:
        """The files that tests run on: those that the model left, but for what is not the model's to change."""
        kept = {name: data for name, data in left.items() if not _steers(name)}
        ours = {name: data for name, data in self.files.items() if _steers(name) or name in self.test_files}
        return _overlaid(kept, {**ours, **self.tests})


@dataclass(frozen=True, slots=True)
class Results:
    """What became of the tests that ran."""

    outcomes: Mapping[str, str] = field(default_factory=dict)
    """Test -> passed, failed or skipped; of files whose results can be believed."""
    detail: str = ""
    """Why there are none."""
    is_forged: bool = False
    """Tests that must fail have passed."""

    def num_passed(self, tests: Iterable[str]) -> int:
        """How many of these passed."""
        return sum(self.outcomes.get(test) == "passed" for test in tests)


def run_tests(task: Task, left: Files, *, sandbox: Sandbox, limits: Limits, is_all: bool = False) -> Results:
    """Run the tests that decide, or all of their files, on the files that were left.

    SandboxError or EpisodeError when they could not be run; what the files themselves bring about is a result.
    """
    wanted = None if is_all else [*task.fail_to_pass, *task.pass_to_pass]
    control = f"c{secrets.token_hex(8)}"
    nonce = secrets.token_hex(16)
    names = [f"{FOLDER}/{name}" for name in task.test_files]
    request = {
        "nonce": nonce,
        "control": control,
        "judge": f"j{secrets.token_hex(8)}",
        "strict": task.is_strict,
        "wanted": wanted,
        "files": names,
        "folder": FOLDER,
        "plugins": task.plugins,
    }
    files = {f"{FOLDER}/{name}": data for name, data in task.tree(left).items()}
    program = Program(code=_RUNNER.read_text(encoding="utf-8"), files=files)
    with sandbox.start(program, limits=limits, channel=True) as job:
        assert job.channel is not None
        answers = _talk(job.channel, request, seconds=limits.net_s + _GRACE_S)
        execution = job.kill()
    return _results(answers, execution, control=control)


def score(task: Task, results: Results) -> dict[str, float]:
    """1 when resolved, else 0, and the shares that led there (as numbers to log)."""
    repaired = results.num_passed(task.fail_to_pass)
    kept = results.num_passed(task.pass_to_pass)
    is_resolved = repaired == len(task.fail_to_pass) and kept == len(task.pass_to_pass)
    return {
        "resolved": float(is_resolved),
        "fail_to_pass": repaired / max(1, len(task.fail_to_pass)),
        "pass_to_pass": kept / max(1, len(task.pass_to_pass)),
        "forged": float(results.is_forged),
    }


def _talk(channel: socket.socket, request: Mapping[str, Any], *, seconds: float) -> list[dict[str, Any]]:
    """What the runner says to the request: only lines that bear its nonce."""
    ends, data = time.monotonic() + seconds, b""
    answers: list[dict[str, Any]] = []
    try:
        channel.sendall(json.dumps(request).encode() + b"\n")
        while len(data) < _REPLY_BYTES and not any("results" in answer for answer in answers):
            channel.settimeout(max(0.01, ends - time.monotonic()))
            received = channel.recv(1 << 16)
            if not received:
                break
            *lines, data = (data + received).split(b"\n")
            answers += [found for line in lines if (found := _answer(line, str(request["nonce"])))]
    except OSError:
        pass
    return answers


def _answer(line: bytes, nonce: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_ours = isinstance(found, dict) and secrets.compare_digest(
        str(found.get("nonce")).encode(), nonce.encode()
    )
    return found if is_ours else None


def _results(answers: Sequence[Mapping[str, Any]], execution: Execution, *, control: str) -> Results:
    problem = next((answer["problem"] for answer in answers if "problem" in answer), None)
    if problem is not None:
        raise EpisodeError(str(problem))
    if execution.status == "broken":
        raise SandboxError(f"the sandbox of the hidden tests failed: {execution.detail}")
    if execution.status == "refused":
        # Files that cannot lie in one folder: which of them, only the model can have made so.
        return Results(detail=f"the files could not be laid out ({execution.detail})")
    if not any("ready" in answer for answer in answers):
        raise EpisodeError(f"the hidden tests did not begin: {execution.status}: {execution.stderr[-500:]!r}")
    found = next((answer["results"] for answer in answers if "results" in answer), None)
    if not isinstance(found, dict):
        return Results(detail=f"the tests ended without a result ({execution.status}: {execution.detail})")
    outcomes = {str(name): str(outcome) for name, outcome in found.items()}
    controls = {name: outcome for name, outcome in outcomes.items() if control in name}
    if "passed" in controls.values():
        return Results(detail="tests that must fail have passed", is_forged=True)
    sound = [
        file
        for file in {name.partition("::")[0] for name in outcomes}
        if sum(name.partition("::")[0] == file for name in controls) == NUM_CONTROLS
    ]
    return Results(
        {
            name: outcome
            for name, outcome in outcomes.items()
            if name not in controls and name.partition("::")[0] in sound
        }
    )


def _steers(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        path.name in _STEERING
        or path.name.endswith(_STEERING_SUFFIXES)
        or any(part.endswith(_STEERING_FOLDERS) for part in path.parts)
    )


def _overlaid(under: Files, over: Files) -> dict[str, bytes]:
    """Both, `over` winning: also where one has a folder and the other a file of that name."""
    folders = {str(parent) for name in over for parent in PurePosixPath(name).parents}
    kept = {
        name: data
        for name, data in under.items()
        if name not in folders and not any(str(parent) in over for parent in PurePosixPath(name).parents)
    }
    return {**kept, **over}


def _files(columns: Mapping[str, Any], key: str, *, is_needed: bool = True) -> dict[str, bytes]:
    found = _parsed(columns.get(key))
    if not isinstance(found, Mapping) or (is_needed and not found):
        if found is None and not is_needed:
            return {}
        raise DataError(f"column `{key}` is {found!r:.80}, expected a mapping from paths to texts.")
    # A table of structs has every path of any row in each.
    files = {str(name): str(text).encode() for name, text in found.items() if text is not None}
    try:
        check_names(files)
    except ValueError as error:
        raise DataError(f"column `{key}`: {error}") from error
    return files


def _names(columns: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = _parsed(columns.get(key))
    if found is None:
        return ()
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise DataError(f"column `{key}` is {found!r:.80}, expected a list of texts.")
    return tuple(map(str, found))


def _parsed(value: Any) -> Any:
    """The value; of a text, the JSON that it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
