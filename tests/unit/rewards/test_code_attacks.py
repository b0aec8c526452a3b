"""Nothing but a right program is paid: every attack on the grader scores 0, in time, and never breaks the grader."""

import time

import pytest

from tests.unit.rewards import (
    code_attacks_channel,
    code_attacks_programs,
    code_attacks_search,
    code_attacks_values,
)
from tests.unit.rewards.code_cases import RIGHT, STDIO, grade, sandbox

__all__ = ["sandbox"]
ON_CALLS = [
    *code_attacks_values.ATTACKS,
    *code_attacks_search.ATTACKS,
    *code_attacks_channel.ATTACKS,
    *code_attacks_programs.SANDBOX,
]
ON_OUTPUT = [*code_attacks_programs.OUTPUT, *code_attacks_programs.SANDBOX]
ATTACKS = {"function": ON_CALLS, "asserts": ON_CALLS, "stdio": ON_OUTPUT}
LIMITS = {"cpu_s": 0.25, "total_cpu_s": 0.5}
HUNG_S = 25.0
"""Above anything a busy machine adds, below what the grader waits for an answer that never comes."""
CASES = [(name, kind, code) for kind, attacks in ATTACKS.items() for name, _, code in attacks]
COMPARISONS = ["assert solve(2, 3) == 5", "assert abs(solve(2, 3) - 5) < 1e-6", "assert not solve(2, 3) != 5"]
# As easy as tests can be: one comparison each, and passing any of them counts.
RECORDS = {
    "function": {
        "kind": "function",
        "fn_name": "solve",
        "inputs": [[2, 3]],
        "outputs": [5],
        "tolerance": 1e-6,
    },
    "asserts": {
        "kind": "asserts",
        "tests": COMPARISONS[:1],
        "entry_points": ["solve"],
    },
    "stdio": STDIO,
}


def test_every_attack_has_a_name_and_a_reason():
    attacks = [*ON_CALLS, *code_attacks_programs.OUTPUT]
    assert len({name for name, *_ in attacks}) == len(attacks) >= 150
    assert all(name and why and code for name, why, code in attacks)


@pytest.mark.parametrize("kind", RECORDS)
def test_right_program_is_paid_by_the_same_records(sandbox, kind):
    assert grade(sandbox, RIGHT[kind], RECORDS[kind]).value == 1.0


@pytest.mark.parametrize(("name", "kind", "code"), CASES, ids=[f"{name}-{kind}" for name, kind, _ in CASES])
def test_attack_on_the_grader_earns_nothing(sandbox, name, kind, code):
    start = time.monotonic()
    result = grade(sandbox, code, RECORDS[kind], **LIMITS)
    assert (result.value, result.outcome in ("wrong", "limit")) == (0.0, True), result
    assert time.monotonic() - start < HUNG_S


@pytest.mark.parametrize(
    ("name", "code"), [pytest.param(name, code, id=name) for name, _, code in code_attacks_values.ATTACKS]
)
def test_attack_on_comparisons_passes_none_of_them(sandbox, name, code):
    record = RECORDS["asserts"] | {"tests": COMPARISONS[1:]}
    assert grade(sandbox, code, record, credit="share", **LIMITS).value == 0.0


def test_attacks_are_paid_where_tests_run_in_the_solutions_process(sandbox):
    weak = RECORDS["asserts"] | {"tests": COMPARISONS, "is_weak": True}
    kwargs = {"credit": "share", "allow_weak": True, **LIMITS}
    paid = {
        name for name, _, code in code_attacks_values.ATTACKS if grade(sandbox, code, weak, **kwargs).value
    }
    assert {"always_equal", "always_near", "int_subclass", "patched_abs", "patched_exec"} <= paid
    assert len(paid) >= 12
