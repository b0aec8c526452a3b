import asyncio
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml

from rewards import code_readers
from rewards.code_bench import Kind
from rewards.code_records import parse_record
from rewards.code_tests import CodeTests, chosen_tests
from rlhf.config.rewards import RewardConfig
from rlhf.config.task import TaskConfig
from rlhf.errors import DataError, LoadError, RewardError
from rlhf.importing import load_function
from rlhf.rollout.reward_shapes import bind
from rlhf.rollout.scoring import RewardPool
from rlhf.sandbox.execution import Execution
from tests.unit.rewards.attempts import group_of, prompt_of
from tests.unit.rewards.code_cases import (
    ASSERTS,
    FUNCTION,
    RECORDS,
    RIGHT,
    STDIO,
    fenced,
    grade,
    prompt,
    sandbox,
)

__all__ = ["sandbox"]
PAGE = Path(__file__).parents[3] / "docs/code.md"
ADD = RIGHT["function"]
HALF = "def solve(a, b):\n    assert a != 10\n    return a + b"


@pytest.mark.parametrize(
    ("credit", "code", "value"),
    [
        ("all", ADD, 1.0),
        ("all", HALF, 0.0),
        ("share", HALF, 2 / 3),
        ("share", "def solve(a, b):\n    return 0", 0.0),
        ("staged", ADD, 1.0),
        ("staged", "def solve(a, b:", 0.0),
        ("staged", "import no_such_module", 0.1),
        ("staged", "def solve(a, b):\n    raise ValueError", 0.1),
        ("staged", "def solve(a, b):\n    return 0", 0.3),
        ("staged", HALF, 0.1 + 0.9 * 2 / 3),
    ],
)
@pytest.mark.parametrize("kind", ["function", "asserts"])
def test_credit_pays_for_all_tests_their_share_or_the_stages(sandbox, kind, credit, code, value):
    assert grade(sandbox, code, RECORDS[kind], credit=credit).value == pytest.approx(value)


def test_parts_are_the_stages(sandbox):
    result = grade(sandbox, HALF, FUNCTION, credit="share")
    assert result.parts == pytest.approx({"compiled": 1.0, "ran": 2 / 3, "passed": 2 / 3})
    assert grade(sandbox, HALF, FUNCTION).parts == {"compiled": 1.0}


def test_all_or_nothing_stops_at_the_first_failure(sandbox):
    record = {**STDIO, "inputs": ["1"] * 500, "outputs": ["1"] * 500}
    reward = CodeTests(sandbox=sandbox)
    before = sandbox_jobs(sandbox)
    assert reward(completion=fenced("print(2)"), tests=record, prompt=prompt()).value == 0.0
    assert sandbox_jobs(sandbox) - before == 1


def sandbox_jobs(found):
    return found._launcher.num_jobs


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        (f"<think>{fenced(ADD)}</think>", "unparsable"),
        (f"<think>{fenced(ADD)}", "unparsable"),
        (ADD, "unparsable"),
        ("", "unparsable"),
        (f"<think>x</think>{fenced(ADD)}", "ok"),
        (f"```python\n{ADD}", "ok"),
    ],
)
def test_program_is_looked_for_where_the_answer_is(sandbox, completion, outcome):
    result = CodeTests(sandbox=sandbox)(completion=completion, tests=FUNCTION, prompt=prompt())
    assert (result.outcome, result.value) == (outcome, float(outcome == "ok"))


def test_template_that_opens_a_think_block_and_bare_programs_are_kwargs(sandbox):
    opened = CodeTests(sandbox=sandbox, prompt_opens_think=True)
    assert opened(completion=fenced(ADD), tests=FUNCTION, prompt=prompt()).outcome == "unparsable"
    assert opened(completion=f"x</think>{fenced(ADD)}", tests=FUNCTION, prompt=prompt()).value == 1.0
    assert (
        CodeTests(sandbox=sandbox, whole_text=True)(completion=ADD, tests=FUNCTION, prompt=prompt()).value
        == 1.0
    )


def test_sampled_tests_are_the_same_for_siblings_and_hold_the_hardest():
    many = {**STDIO, "inputs": ["1"] * 50, "outputs": ["1"] * 50}
    record = parse_record({**many, "hardest": [40, 3]})
    chosen = chosen_tests(record, max_tests=10, key="0 a")
    assert chosen[:2] == [40, 3]
    assert len(set(chosen)) == 10
    assert (
        chosen
        == chosen_tests(record, max_tests=10, key="0 a")
        != chosen_tests(record, max_tests=10, key="0 b")
    )
    assert chosen_tests(record, max_tests=1, key="0 a") == [40]
    assert sorted(chosen_tests(record, max_tests=None, key="")) == list(range(50))
    assert chosen_tests(parse_record(many), max_tests=99, key="") == list(range(50))


def test_only_sampled_tests_are_run(sandbox):
    record = {**FUNCTION, "inputs": [[1, 1]] * 9 + [[10, 1]], "outputs": [2] * 9 + [11]}
    assert grade(sandbox, HALF, {**record, "hardest": [9]}, max_tests=2).value == 0.0
    result = grade(sandbox, HALF, {**record, "inputs": [[1, 1]] * 10, "outputs": [2] * 10}, max_tests=2)
    assert (result.value, result.detail["tests"]) == (1.0, 2)


def test_weak_records_are_refused_unless_allowed(sandbox):
    weak = {**ASSERTS, "is_weak": True}
    with pytest.raises(DataError, match="allow_weak"):
        grade(sandbox, ADD, weak)
    assert grade(sandbox, ADD, weak, allow_weak=True).value == 1.0
    assert grade(sandbox, HALF, weak, allow_weak=True, credit="share").value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"credit": "half"}, "credit"),
        ({"max_tests": 0}, "max_tests"),
        ({"cpu_s": -1}, "cpu_s"),
        ({"languages": []}, "languages"),
        ({"languages": "python"}, "languages"),
        ({"languages": ["cobol"]}, "cobol"),
    ],
)
def test_wrong_kwargs_are_errors_at_load(sandbox, kwargs, named):
    with pytest.raises(LoadError, match=named):
        CodeTests(sandbox=sandbox, **kwargs)


class Unreliable:
    """A sandbox whose first `failures` programs break."""

    def __init__(self, real, failures):
        self._real = real
        self._failures = failures

    def run(self, program, *, limits):
        self._failures -= 1
        if self._failures >= 0:
            return Execution(status="broken", tier="namespaces", detail="starved")
        return self._real.run(program, limits=limits)


def test_broken_sandbox_is_tried_once_more_and_then_an_error_but_never_a_score(sandbox):
    assert grade(Unreliable(sandbox, 1), RIGHT["stdio"], STDIO).value == 1.0
    with pytest.raises(RewardError, match="starved"):
        grade(Unreliable(sandbox, 2), RIGHT["stdio"], STDIO)


def test_record_with_limits_of_its_own_is_graded_within_them(sandbox):
    loop = (
        "import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass\n" + RIGHT["stdio"]
    )
    one = {**STDIO, "inputs": STDIO["inputs"][:1], "outputs": STDIO["outputs"][:1]}
    assert grade(sandbox, loop, one, cpu_s=0.3).outcome == "limit"
    assert grade(sandbox, loop, one | {"cpu_s": 5.0}, cpu_s=0.3).value == 1.0
    assert (
        grade(sandbox, "x = bytearray(400 << 20)\n" + RIGHT["stdio"], one | {"memory_mb": 128.0}).outcome
        == "limit"
    )


def test_recipe_grades_programs_in_a_reward_worker(sandbox):
    texts = [fenced(ADD), fenced(HALF), f"<think>{fenced(ADD)}", fenced("while True: pass")]

    async def run():
        rewards = [RewardConfig(use="rewards.code_tests:grade", limit_s=400, kwargs={"cpu_s": 1.0})]
        pool = RewardPool(rewards, num_workers=1)
        try:
            await pool.start()
            return pool.required_columns, await pool.score(group_of(prompt_of(tests=ASSERTS), *texts))
        finally:
            await pool.close()

    columns, results = asyncio.run(run())
    assert columns == {"code_tests.grade": ("tests",)}
    assert [result.value for result in results] == [1.0, 0.0, 0.0, 0.0]
    assert [result.outcome for result in results] == ["ok", "wrong", "unparsable", "limit"]
    assert results[3].detail["code_tests.grade/kind"] == "cpu_limit"


def test_unknown_kwarg_of_a_recipe_is_named(sandbox):
    async def run():
        pool = RewardPool(
            [RewardConfig(use="rewards.code_tests:grade", kwargs={"credits": "all"})], num_workers=1
        )
        try:
            await pool.start()
        finally:
            await pool.close()

    with pytest.raises(LoadError, match="credits"):
        asyncio.run(run())


def test_grading_leaves_no_descriptor_and_no_process_behind(sandbox):
    def once():
        for kind, record in RECORDS.items():
            assert grade(sandbox, RIGHT[kind], record).value == 1.0
            assert grade(sandbox, "import os\nos._exit(0)", record, credit="share").value == 0.0
        assert grade(sandbox, "def solve(a, b):\n    while True: pass", ASSERTS, cpu_s=0.1).value == 0.0

    once()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(5):
        once()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_several_threads_may_grade_at_once(sandbox):
    reward = CodeTests(sandbox=sandbox, credit="share")
    jobs = [(RIGHT[kind], record, 1.0) for kind, record in RECORDS.items()] + [(HALF, FUNCTION, 2 / 3)]
    with ThreadPoolExecutor(20) as pool:
        futures = [
            (pool.submit(reward, completion=fenced(code), tests=tests, prompt=prompt()), value)
            for code, tests, value in jobs * 8
        ]
        assert all(future.result().value == pytest.approx(value) for future, value in futures)


@pytest.mark.parametrize(
    "snippet", re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
)
def test_recipes_of_the_page_load(sandbox, snippet):
    task = TaskConfig.model_validate({"train": {"file": "rows.jsonl"}} | yaml.safe_load(snippet)["task"])
    for reward in task.rewards:
        function = bind(
            load_function(reward.use, key="use"), reward.kwargs | {"sandbox": sandbox}, key="docs"
        )
        assert function.shape.columns == ("tests",)


def test_every_option_reader_and_kind_of_failure_stands_on_the_page():
    text = PAGE.read_text()
    options = [field.name for field in fields(CodeTests) if field.name != "sandbox"]
    readers = [name for name in vars(code_readers) if re.fullmatch(r"[a-z]+_row(_or_\w+)?", name)]
    kinds = [kind for kind in get_args(Kind) if kind != "passed"]
    assert [name for name in [*options, *readers, *kinds] if f"`{name}`" not in text] == []
