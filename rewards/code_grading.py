"""Runs the tests of a record against a solution: one verdict per test, in the order asked for.

Expected outputs stay in this process, asserts in a sandbox of their own; model code runs in neither.
"""

import secrets
import threading
from collections.abc import Generator, Sequence
from typing import Any

from rewards.code_bench import Bench, Ended, Side, Verdict, verdict_of
from rewards.code_comparison import same_output, same_value
from rewards.code_extraction import Answer
from rewards.code_languages import CompileError, Runnable, compiled
from rewards.code_records import AssertTests, FunctionTests, Record, StdioTests
from rewards.code_wire import encode
from rlhf.errors import RewardError
from rlhf.sandbox.client import MAX_JOBS
from rlhf.sandbox.execution import Execution

Verdicts = Generator[tuple[int, Verdict], None, None]
_MESSAGE_CHARACTERS = 300
_PYTHON_COMPILE_ERRORS = ("SyntaxError", "IndentationError", "TabError")
_PYTHON_IMPORT_ERRORS = ("ImportError", "ModuleNotFoundError")
_PAIRS = threading.BoundedSemaphore(MAX_JOBS // 2)
"""Gradings that need two places in the sandbox at once: more of them could each hold one and wait for ever."""
_RECORDS_OWN = ("NameError", "UnsendableError", *_PYTHON_COMPILE_ERRORS, *_PYTHON_IMPORT_ERRORS)
"""What a test raises because it is broken itself: no plain value makes it do so."""


def run_tests(bench: Bench, record: Record, answer: Answer, numbers: Sequence[int]) -> Verdicts:
    """(test number, verdict) of each test in `numbers`, until one is final. Stop taking them to stop testing."""
    tests = record.tests
    if isinstance(tests, StdioTests):
        return _stdio(bench, tests, answer, numbers)
    if isinstance(tests, FunctionTests):
        return _function(bench, tests, answer.source, numbers)
    return (
        _weak(bench, tests, answer.source, numbers)
        if tests.is_weak
        else _asserts(bench, tests, answer.source, numbers)
    )


def _stdio(bench: Bench, tests: StdioTests, answer: Answer, numbers: Sequence[int]) -> Verdicts:
    """A fresh process for every test."""
    try:
        runnable = compiled(bench, answer)
    except CompileError as error:
        yield (
            numbers[0],
            Verdict(error.kind, str(error)[:_MESSAGE_CHARACTERS], is_final=True, has_compiled=False),
        )
        return
    for number in numbers:
        if exhausted := bench.exhausted:
            yield number, exhausted
            return
        execution = runnable.run(bench, tests.inputs[number], expected=tests.outputs[number])
        yield number, _judge_output(tests, tests.outputs[number], execution, runnable)


def _judge_output(tests: StdioTests, expected: str, execution: Execution, runnable: Runnable) -> Verdict:
    if execution.status != "exited":
        return verdict_of(execution)
    if execution.exit_code != 0:
        return _why_failed(execution, runnable)
    got = execution.stdout.decode("utf-8", errors="surrogateescape")
    if same_output(expected, got, by_token=tests.compare == "tokens", tolerance=tests.tolerance):
        return Verdict("passed")
    return Verdict("wrong_answer", f"expected {expected[:60]!r}, got {got[:60]!r}")


def _why_failed(execution: Execution, runnable: Runnable) -> Verdict:
    """What a nonzero exit code means; of Python, by the last line of its traceback."""
    stderr = execution.stderr[-4000:].decode("utf-8", errors="replace").strip()
    last = stderr.rpartition("\n")[2][:_MESSAGE_CHARACTERS]
    name = last.partition(":")[0]
    if runnable.language == "python" and name in _PYTHON_COMPILE_ERRORS:
        return Verdict("compile_error", last, is_final=True, has_compiled=False)
    if runnable.language == "python" and name in _PYTHON_IMPORT_ERRORS:
        return Verdict("import_error", last, is_final=True)
    if name == "MemoryError":
        return Verdict("memory_limit", last)
    return Verdict("exception", f"exit code {execution.exit_code}: {last}")


def _function(bench: Bench, tests: FunctionTests, source: str, numbers: Sequence[int]) -> Verdicts:
    """Calls in sequence in one process; a new one after it has ended, so that one hang costs one test."""
    left = list(numbers)
    while left:
        if exhausted := bench.exhausted:
            yield left[0], exhausted
            return
        with Side(bench, "solution") as side:
            try:
                refusal = _load(side, tests.setup, source, [tests.fn_name])
                if refusal is not None:
                    yield left[0], refusal
                    return
                while left:
                    reply = _call(side, tests.fn_name, encode(list(tests.inputs[left[0]])), encode({}))
                    verdict = _judge_reply(tests, tests.outputs[left[0]], reply)
                    yield left.pop(0), verdict
            except Ended as end:
                yield left.pop(0), end.verdict


def _load(side: Side, setup: str, source: str, names: Sequence[str]) -> Verdict | None:
    """Have the solution executed; why it could not be, which no test survives."""
    try:
        name, *parts = side.ask("load", setup, source, list(names))
    except Ended as end:
        return Verdict(end.verdict.kind, end.verdict.message, is_final=True)
    match name, parts:
        case "loaded", []:
            return None
        case "failed", ["setup", str(message)]:
            raise RewardError(f"the record's own setup code raised {message}")
        case "failed", ["compile_error" | "import_error" | "exception" as kind, str(message)]:
            message = message[:_MESSAGE_CHARACTERS]
            return Verdict(kind, message, is_final=True, has_compiled=kind != "compile_error")
    return Verdict("protocol", "no answer to the order to load", is_final=True)


def _call(side: Side, name: str, arguments: Any, keywords: Any) -> list[Any]:
    """["returned", value], ["raised", type, message] or ["unsendable", what]. Ended for anything else."""
    number = secrets.randbelow(1 << 53)
    reply = side.ask("call", number, name, arguments, keywords)
    match reply:
        case (
            ["returned", int(found), _]
            | ["raised", int(found), str(), str()]
            | ["unsendable", int(found), str()]
        ):
            if found == number:
                return [reply[0], *reply[2:]]
    raise Ended(Verdict("protocol", f"an answer to no call: {reply[0][:40]!r}"))


def _judge_reply(tests: FunctionTests, expected: Any, reply: list[Any]) -> Verdict:
    if reply[0] != "returned":
        return _why_no_value(reply)
    wanted = [encode(expected)]
    if tests.unwraps and isinstance(expected, list) and len(expected) == 1:
        wanted.append(encode(expected[0]))
    if any(same_value(value, reply[1], tolerance=tests.tolerance) for value in wanted):
        return Verdict("passed")
    return Verdict("wrong_answer", f"expected {str(expected)[:60]}, got {str(reply[1])[:60]}")


def _why_no_value(reply: list[Any]) -> Verdict:
    if reply[0] == "unsendable":
        return Verdict("unsendable", f"a value that is no plain data: {reply[1]}"[:_MESSAGE_CHARACTERS])
    if reply[1] == "MemoryError":
        return Verdict("memory_limit", reply[2][:_MESSAGE_CHARACTERS])
    return Verdict("exception", f"{reply[1]}: {reply[2]}"[:_MESSAGE_CHARACTERS])


def _asserts(bench: Bench, tests: AssertTests, source: str, numbers: Sequence[int]) -> Verdicts:
    """The tests in one sandbox, the solution in another, and the calls between them through here."""
    left = list(numbers)
    while left:
        if exhausted := bench.exhausted:
            yield left[0], exhausted
            return
        with _PAIRS, Side(bench, "solution") as solution, Side(bench, "tests") as side:
            try:
                refusal = _load(solution, tests.setup, source, tests.entry_points)
                if refusal is not None:
                    yield left[0], refusal
                    return
                _load(side, tests.setup, "", tests.entry_points)
                while left:
                    verdict = _run_test(side, solution, tests.tests[left[0]])
                    yield left.pop(0), verdict
            except Ended as end:
                yield left.pop(0), end.verdict


def _run_test(side: Side, solution: Side, test: str) -> Verdict:
    """Have the tests' side run one test and carry its calls to the solution."""
    nonce = secrets.token_hex(16)
    raised: Verdict | None = None
    reply = side.ask("test", test, nonce)
    while reply[0] == "call":
        answer = _call(solution, *reply[1:])
        if answer[0] != "returned":
            raised = _why_no_value(answer)
        if answer[0] == "unsendable":
            raise Ended(_why_no_value(answer))
        reply = side.ask(*answer)
    match reply:
        case ["done", str(found)] if secrets.compare_digest(found, nonce):
            return Verdict("passed")
        case ["failed", str(kind), str(what)] if raised or kind not in _RECORDS_OWN:
            return raised or Verdict("wrong_answer", _shown(kind, what))
        case ["failed", _, what]:
            raise RewardError(f"the record's own test raised {what}")
    raise RewardError(f"the tests' side answered {reply[0]!r}")


def _shown(kind: str, what: str) -> str:
    return (
        what
        if kind != "AssertionError" or what.removeprefix("AssertionError").strip(": ")
        else "an assert failed"
    )


def _weak(bench: Bench, tests: AssertTests, source: str, numbers: Sequence[int]) -> Verdicts:
    """Tests and solution in one process: nothing keeps the solution from answering for the tests."""
    left = list(numbers)
    while left:
        if exhausted := bench.exhausted:
            yield left[0], exhausted
            return
        with Side(bench, "both") as side:
            try:
                refusal = _load(side, tests.setup, source, tests.entry_points)
                if refusal is not None:
                    yield left[0], refusal
                    return
                while left:
                    nonce = secrets.token_hex(16)
                    reply = side.ask("test", tests.tests[left[0]], nonce)
                    verdict = (
                        Verdict("passed")
                        if reply == ["done", nonce]
                        else Verdict("wrong_answer", str(reply[1:])[:200])
                    )
                    yield left.pop(0), verdict
            except Ended as end:
                yield left.pop(0), end.verdict
