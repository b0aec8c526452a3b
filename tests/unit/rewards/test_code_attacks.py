"""Nothing but a right program is paid: every attack on the grader scores 0, in time, and is no failure of the grader."""

import time

import pytest

from tests.unit.rewards import code_attacks, code_attacks_channel, code_attacks_programs
from tests.unit.rewards.code_cases import RECORDS, grade, sandbox

__all__ = ["sandbox"]
ATTACKS = [*code_attacks.ATTACKS, *code_attacks_channel.ATTACKS, *code_attacks_programs.ATTACKS]
CPU_S = 0.5
CASES = [(name, kind, code) for name, _, code, kinds in ATTACKS for kind in kinds]


def test_every_attack_has_a_name_and_a_reason():
    assert len({name for name, *_ in ATTACKS}) == len(ATTACKS) >= 60
    assert all(why for _, why, *_ in ATTACKS)


@pytest.mark.parametrize(("name", "kind", "code"), CASES, ids=[f"{name}-{kind}" for name, kind, _ in CASES])
def test_attack_on_the_grader_earns_nothing(sandbox, name, kind, code):
    start = time.monotonic()
    result = grade(sandbox, code, RECORDS[kind], cpu_s=CPU_S, total_cpu_s=2.0)
    assert (result.value, result.outcome in ("wrong", "limit")) == (0.0, True), result
    assert time.monotonic() - start < 4 * CPU_S + 1


SHARED = ["always_equal", "guesses_numbers", "forges_twice", "late_thread", "exit_at_import", "huge_prefix"]


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("kind", ["function", "asserts"])
def test_attack_earns_no_share_of_the_credit_either(sandbox, kind, name):
    (code,) = (code for known, _, code, _ in ATTACKS if known == name)
    result = grade(sandbox, code, RECORDS[kind], credit="share", cpu_s=CPU_S, total_cpu_s=2.0)
    assert result.value == 0.0
