import pytest

from rewards.code_tasks import demonstrations, problems
from rewards.code_tests import CodeTests
from tests.unit.rewards.code_cases import prompt, sandbox

__all__ = ["sandbox"]


def computed(program, arguments):
    names = {}
    exec(program, names)
    return names["f"](*arguments)


def test_references_compute_what_the_tests_expect():
    for row in problems(0, 300):
        outputs = [computed(row["reference"], arguments) for arguments in row["tests"]["inputs"]]
        assert outputs == row["tests"]["outputs"]


def test_operations_are_done_from_left_to_right():
    (row,) = [row for row in problems(0, 300, operations=2) if row["prompt"] == "+3*2="]
    assert row["reference"] == "def f(x): return (x+3)*2"
    assert row["tests"]["outputs"] == [(x + 3) * 2 for (x,) in row["tests"]["inputs"]]


def test_careless_demonstrations_fail_some_tests_and_others_none():
    rows = demonstrations(0, 400, careless=0.6)
    is_bare = ["(" not in row["completion"].partition(":")[2] for row in rows]
    needs = ["(" in row["reference"].partition(":")[2] for row in rows]
    wrong = [
        [computed(row["completion"], a) for a in row["tests"]["inputs"]] != row["tests"]["outputs"]
        for row in rows
    ]
    assert wrong == [bare and need for bare, need in zip(is_bare, needs, strict=True)]
    assert 0.5 < sum(wrong) / sum(needs) < 0.7


def test_heldout_problems_are_in_no_training_set():
    heldout = {row["id"] for row in problems(3, 500, split="heldout")}
    assert not heldout & {row["id"] for seed in range(2) for row in problems(seed, 4000)}


def test_too_many_problems_are_refused():
    with pytest.raises(ValueError, match="found only"):
        problems(0, 10_000, operations=2)


def test_sandbox_grades_a_program_without_a_block(sandbox):
    reward = CodeTests(sandbox=sandbox, whole_text=True)
    (row,) = [row for row in demonstrations(0, 300, operations=2, careless=1.0) if row["prompt"] == "+3*2="]
    assert reward(row["reference"], row["tests"], prompt("good")).value == 1.0
    assert reward(row["completion"], row["tests"], prompt("careless")).outcome == "wrong"
