"""Every reference of HumanEval and MBPP passes, and what is made wrong of it fails. Needs ../shared/data."""

import gzip
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewards.code_readers import humaneval_row, mbpp_row, mbpp_row_or_weak
from rewards.code_tests import CodeTests
from tests.unit.rewards.code_cases import fenced, prompt, sandbox
from tests.unit.rewards.code_mutants import operators_swapped, returns_another, returns_nothing

__all__ = ["sandbox"]
DATA = Path(__file__).parents[4] / "shared/data"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def rows(name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def say(text):
    print(text)


def failures(sandbox, mapped):
    reward = CodeTests(sandbox=sandbox)

    def graded(row):
        return reward(row["gold_completion"], row["tests"], prompt(row["id"]))

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(graded, mapped))
    return {row["id"]: r.detail for row, r in zip(mapped, results, strict=True) if r.value != 1.0}


def test_every_humaneval_reference_passes_in_time(sandbox):
    mapped = [humaneval_row(row) for row in rows("humaneval/HumanEval.jsonl.gz")]
    start = time.monotonic()
    assert failures(sandbox, mapped) == {}
    seconds = time.monotonic() - start
    say(f"HumanEval: {len(mapped)} references in {seconds:.1f} s, tier {sandbox.tier}")
    assert len(mapped) == 164
    assert seconds < 500


def test_mutants_of_humaneval_references_fail(sandbox):
    reward = CodeTests(sandbox=sandbox, cpu_s=2.0)
    beside = CodeTests(sandbox=sandbox, cpu_s=2.0, allow_weak=True)

    def verdicts(row):
        source, name, tests = row["reference"], row["tests"]["entry_points"][0], row["tests"]
        for mutant in (returns_nothing(source, name), returns_another(source, name)):
            assert reward(fenced(mutant), tests, prompt()).value == 0.0, mutant
        mutant = next(operators_swapped(source, name), None)
        if mutant is None or reward(fenced(mutant), tests, prompt()).value == 0.0:
            return mutant is not None, False
        # Equal to the original, or the data set's tests do not see it: then no grader does.
        assert beside(fenced(mutant), tests | {"is_weak": True}, prompt()).value == 1.0
        return True, True

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(verdicts, map(humaneval_row, rows("humaneval/HumanEval.jsonl.gz"))))
    num_swapped, num_alive = (sum(flags) for flags in zip(*found, strict=True))
    say(
        f"HumanEval: {2 * len(found)} changed results fail; {num_alive} of {num_swapped} swapped operators pass"
    )
    assert len(found) == 164
    assert num_alive <= num_swapped // 8


def test_mbpp_references_pass(sandbox):
    """Every fourth of them; all with MBPP=all in the environment."""
    all_rows = rows("mbpp/mbpp.jsonl")
    mapped = [row for row in map(mbpp_row, all_rows) if row is not None]
    assert len(mapped) >= 970
    tried = mapped if os.environ.get("MBPP") == "all" else mapped[::4]
    start = time.monotonic()
    failed = failures(sandbox, tried)
    say(f"MBPP: {len(tried) - len(failed)} of {len(tried)} in {time.monotonic() - start:.1f} s")
    assert failed == {}
    left_out = {row["task_id"] for row in all_rows if mbpp_row(row) is None}
    assert left_out == {367, 601, 927}


def test_weak_mbpp_record_passes_where_it_is_allowed(sandbox):
    (weak,) = [row for row in rows("mbpp/mbpp.jsonl") if row["task_id"] == 601]
    row = mbpp_row_or_weak(weak)
    assert row["tests"]["is_weak"]
    assert (
        CodeTests(sandbox=sandbox, allow_weak=True)(row["gold_completion"], row["tests"], prompt()).value
        == 1.0
    )
