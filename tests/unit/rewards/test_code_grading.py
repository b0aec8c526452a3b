import time

import pytest

from rlhf.errors import RewardError
from tests.unit.rewards.code_attacks_channel import FORGE
from tests.unit.rewards.code_cases import ASSERTS, FUNCTION, RECORDS, RIGHT, STDIO, grade, sandbox

__all__ = ["sandbox"]
FAST = {"cpu_s": 0.5, "total_cpu_s": 2.0}
PATIENT = {"cpu_s": 5.0, "total_cpu_s": 20.0}
"""For what no limit of time ends: a machine may stall for the two seconds that FAST allows."""
HUNG_S = 25.0
"""Above anything a busy machine adds, below what the grader waits for an answer that never comes."""
ADD = RIGHT["function"]


@pytest.mark.parametrize("kind", RECORDS)
def test_right_program_passes(sandbox, kind):
    result = grade(sandbox, RIGHT[kind], RECORDS[kind])
    assert (result.value, result.outcome) == (1.0, "ok")
    assert result.detail == {"tier": sandbox.tier, "tests": 3.0}


@pytest.mark.parametrize("kind", RECORDS)
def test_program_that_is_right_but_for_one_test_names_it(sandbox, kind):
    code = RIGHT[kind].replace("a + b", "a + b if a != 10 else 0")
    result = grade(sandbox, code, RECORDS[kind])
    assert (result.value, result.outcome) == (0.0, "wrong")
    assert (result.detail["kind"], result.detail["failed_test"]) == ("wrong_answer", 1)


HONEST = {
    "prints": "print('loading')\ndef solve(a, b):\n    print('debug', a)\n    return a + b",
    "main guard": f"{ADD}\nif __name__ == '__main__':\n    print(solve(*map(int, input().split())))",
    "class Solution": "class Solution:\n    def solve(self, a, b):\n        return a + b",
    "dataclass": "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    "@dataclass\nclass P:\n    x: int\ndef solve(a, b):\n    return P(a).x + b",
    "closes what it thinks are its streams": f"import os\nos.close(0); os.close(1); os.close(2)\n{ADD}",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**6)\ndef depth(n):\n    return n and 1 + depth(n - 1)\n"
    "def solve(a, b):\n    depth(20000)\n    return a + b",
    "threads": "import threading\ndef solve(a, b):\n    found = []\n"
    "    t = threading.Thread(target=lambda: found.append(a + b))\n    t.start(); t.join()\n    return found[0]",
    "lambda": "solve = lambda a, b: a + b",
    "cache": "import functools\n@functools.cache\ndef solve(a, b):\n    return a + b",
    "callable object": "class Add:\n    def __call__(self, a, b):\n        return a + b\nsolve = Add()",
    "state of its own": f"calls = 0\n{ADD}\ninner = solve\n"
    "def solve(a, b):\n    global calls\n    calls += 1\n    return inner(a, b)",
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("kind", ["function", "asserts"])
def test_habits_of_honest_programs_cost_nothing(sandbox, kind, name):
    result = grade(sandbox, HONEST[name], RECORDS[kind])
    assert result.value == 1.0, result.detail


FAILURES = {
    "compile_error": ("def solve(a, b:\n    return", "wrong"),
    "import_error": ("import no_such_module\ndef solve(a, b): return a + b", "wrong"),
    "exception": ("def solve(a, b):\n    return a.b", "wrong"),
    "unsendable": ("def solve(a, b):\n    return (x for x in ())", "wrong"),
    "exited": ("import os\ndef solve(a, b):\n    os._exit(0)", "wrong"),
    "crashed": ("import os, signal\ndef solve(a, b):\n    os.kill(os.getpid(), signal.SIGSEGV)", "wrong"),
    "cpu_limit": ("def solve(a, b):\n    while True: pass", "limit"),
    "wall_limit": ("import time\ndef solve(a, b):\n    time.sleep(1000)", "limit"),
    "memory_limit": ("def solve(a, b):\n    return bytearray(3 << 30)", "limit"),
}


def limits_for(failure):
    return FAST if failure in ("cpu_limit", "wall_limit") else PATIENT


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("kind", ["function", "asserts"])
def test_each_failure_of_a_program_has_its_kind(sandbox, kind, failure):
    code, outcome = FAILURES[failure]
    start = time.monotonic()
    result = grade(sandbox, code, RECORDS[kind], **limits_for(failure))
    assert (result.detail["kind"], result.outcome, result.value) == (failure, outcome, 0.0)
    assert result.detail["failed_test"] == 0
    assert time.monotonic() - start < HUNG_S


STDIO_FAILURES = {
    "compile_error": "print((",
    "import_error": "import no_such_module",
    "exception": "print(int(input()))",
    "wrong_answer": "print(5)",
    "crashed": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "cpu_limit": "while True: pass",
    "wall_limit": "import time\ntime.sleep(1000)",
    "memory_limit": "x = bytearray(3 << 30)",
    "output_limit": "while True: print('5')",
}


@pytest.mark.parametrize("failure", STDIO_FAILURES)
def test_each_failure_of_a_standard_input_program_has_its_kind(sandbox, failure):
    start = time.monotonic()
    result = grade(sandbox, STDIO_FAILURES[failure], STDIO, **limits_for(failure))
    assert (result.detail["kind"], result.value) == (failure, 0.0)
    assert time.monotonic() - start < HUNG_S


def test_right_output_with_a_wrong_exit_code_fails(sandbox):
    result = grade(sandbox, RIGHT["stdio"] + "sys.exit(3)", STDIO)
    assert (result.value, result.detail["kind"]) == (0.0, "exception")


@pytest.mark.parametrize("kind", ["function", "asserts"])
def test_one_hang_costs_one_test_when_credit_is_shared(sandbox, kind):
    code = "def solve(a, b):\n    while a == 10: pass\n    return a + b"
    result = grade(sandbox, code, RECORDS[kind], credit="share", **FAST)
    assert result.value == pytest.approx(2 / 3)
    assert (result.outcome, result.detail["failed_test"]) == ("limit", 1)


def test_all_tests_together_have_a_limit_of_their_own(sandbox):
    record = {**FUNCTION, "inputs": [[1, 1]] * 400, "outputs": [2] * 400}
    start = time.monotonic()
    result = grade(sandbox, "def solve(a, b):\n    while True: pass", record, credit="share", **FAST)
    assert (result.value, result.outcome) == (0.0, "limit")
    assert time.monotonic() - start < 2 * HUNG_S  # all tests would take 200 s


@pytest.mark.parametrize("kind", ["function", "stdio"])
def test_sleeping_through_every_test_is_a_limit_of_all_together(sandbox, kind):
    nap = "import time\ntime.sleep(0.7)\n"
    code = (
        nap + RIGHT["stdio"]
        if kind == "stdio"
        else f"import time\n{ADD}".replace("return", "time.sleep(0.7); return")
    )
    record = RECORDS[kind] | {side: list(RECORDS[kind][side]) * 100 for side in ("inputs", "outputs")}
    start = time.monotonic()
    result = grade(sandbox, code, record, cpu_s=0.25, total_cpu_s=0.5)
    assert (result.value, result.outcome, result.detail["kind"]) == (0.0, "limit", "wall_limit")
    assert time.monotonic() - start < 2 * HUNG_S  # all tests would take 200 s


def test_calls_cannot_change_what_the_tests_compare_with(sandbox):
    record = {
        "kind": "asserts",
        "tests": ["data = [3, 1, 2]\nassert order(data) == sorted(data)"],
        "entry_points": ["order"],
    }
    assert grade(sandbox, "def order(x):\n    return sorted(x)", record).value == 1.0
    assert grade(sandbox, "def order(x):\n    x.clear()\n    return []", record).value == 0.0


def test_tests_see_the_built_in_exception_that_the_solution_raised(sandbox):
    test = "try:\n    root(-1)\nexcept ValueError as error:\n    assert 'negative' in str(error)\nelse:\n    assert 0"
    record = {"kind": "asserts", "tests": [test], "entry_points": ["root"]}
    assert grade(sandbox, "def root(x):\n    raise ValueError('negative')", record).value == 1.0
    assert grade(sandbox, "def root(x):\n    raise KeyError('negative')", record).value == 0.0
    assert (
        grade(sandbox, "class E(ValueError): pass\ndef root(x):\n    raise E('negative')", record).value
        == 0.0
    )


@pytest.mark.parametrize("star", ["from operator import *", "from builtins import *"])
def test_name_that_setup_or_python_brings_is_no_solution(sandbox, star):
    name, result = ("add", 5) if "operator" in star else ("pow", 8)
    function = {"kind": "function", "fn_name": name, "inputs": [[2, 3]], "outputs": [result], "setup": star}
    asserts = {
        "kind": "asserts",
        "tests": [f"assert {name}(2, 3) == {result}"],
        "entry_points": [name],
        "setup": star,
    }
    for record in (function, asserts):
        outcome = grade(sandbox, "x = 1", record)
        assert (outcome.value, outcome.detail["kind"]) == (0.0, "exception")
        assert f"does not define {name}" in outcome.detail["message"]


def test_expected_list_of_one_value_may_be_unwrapped_only_where_the_record_says_so(sandbox):
    record = {**FUNCTION, "outputs": [[5], [6], [0.3]]}
    assert grade(sandbox, ADD, record).value == 0.0
    assert grade(sandbox, ADD, {**record, "unwraps": True}).value == 1.0


@pytest.mark.parametrize(
    "record",
    [
        {**FUNCTION, "setup": "import no_such_module"},
        {**ASSERTS, "setup": "root = Node(1)"},
        {**ASSERTS, "tests": ["assert solve(undefined, 1) == 2"]},
        {**ASSERTS, "tests": ["assert solve(1, 1 == 2"]},
        {**ASSERTS, "tests": ["assert solve(object(), 1)"]},
    ],
    ids=["function setup", "asserts setup", "undefined name", "syntax", "argument that cannot cross"],
)
def test_record_that_is_broken_itself_is_an_error_and_never_a_score(sandbox, record):
    with pytest.raises(RewardError, match="record's own"):
        grade(sandbox, ADD, record)


def test_end_of_a_test_is_believed_only_with_its_nonce(sandbox):
    guess = FORGE + "put(['done', '0' * 32])"
    with pytest.raises(RewardError, match="answered 'done'"):
        grade(sandbox, ADD, {**ASSERTS, "tests": [guess]})


def test_solution_cannot_pass_its_fault_on_to_the_record(sandbox):
    for code in (
        "def solve(a, b):\n    raise NameError('x')",
        "def solve(a, b):\n    raise ImportError('x')",
        "x = 1",
    ):
        assert grade(sandbox, code, ASSERTS).value == 0.0
    deep = "def solve(a, b):\n    x = 1\n    for _ in range(64):\n        x = [x]\n    return x"
    nested = {"kind": "asserts", "tests": ["assert solve([solve(1, 2)], 2)"], "entry_points": ["solve"]}
    assert grade(sandbox, deep, nested).value == 0.0


def test_large_values_cross_and_too_large_ones_fail(sandbox):
    record = {"kind": "function", "fn_name": "many", "inputs": [[200_000]], "outputs": [list(range(200_000))]}
    assert grade(sandbox, "def many(n):\n    return list(range(n))", record).value == 1.0
    result = grade(sandbox, "def many(n):\n    return [0] * 3000000", record)
    assert (result.value, result.detail["kind"]) == (0.0, "protocol")
