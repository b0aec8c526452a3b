"""What a reward may take, and what becomes of the worker when it takes more."""

import asyncio
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf.config.rewards import RewardConfig
from rlhf.errors import ConfigError, LoadError
from rlhf.rollout.reward_usage import MORE_CHILDREN, MORE_DESCRIPTORS, Growth, Usage
from rlhf.rollout.scoring import WorkerSettings
from rlhf.types import RewardResult
from tests.unit.rollout.pools import group_of, is_alive, outcomes, pool_of, score, use, values, wait_until

SMALL = WorkerSettings(memory_mb=250)


def graded(
    *completions: str, rewards: tuple[RewardConfig, ...], **keys: Any
) -> tuple[list[Any], dict[str, Any]]:
    """One result per completion, each a group of its own, one after the other in one worker; and the metrics."""

    async def run() -> tuple[list[RewardResult], dict[str, float]]:
        async with pool_of(*rewards, num_workers=1, **keys) as pool:
            found = [result for text in completions for result in await pool.score(group_of(text))]
            return found, pool.metrics()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("leak", "calls", "what"),
    [
        (f"{MORE_DESCRIPTORS // 2} files", 4, "open descriptors"),
        (f"{MORE_CHILDREN // 2} children", 4, "child processes"),
        ("80 MB", 4, "MB of memory"),
    ],
)
def test_leaking_reward_is_named_its_worker_replaced_and_nothing_lost(
    leak: str, calls: int, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    healthy = use("sample")
    results, metrics = graded(*[leak] * calls, rewards=(healthy, use("leaky", limit_s=60.0)), settings=SMALL)
    assert outcomes(results) == ["ok"] * calls
    pids = [result.parts["reward_cases.leaky"] for result in results]
    assert pids[0] == pids[1]
    assert len(set(pids)) == 2
    assert metrics["reward/reward_cases.leaky/leaks"] == 1.0
    assert metrics["reward/reward_cases.sample/leaks"] == 0.0
    assert f"reward reward_cases.leaky leaves {what} behind" in caplog.text
    assert not any(is_alive(int(pid)) for pid in pids)


def test_sample_that_takes_too_much_memory_is_an_error_that_names_the_limit() -> None:
    completions = ("0 MB", "300 MB-in-the-call", "1 MB")

    async def run() -> tuple[list[RewardResult], dict[str, float]]:
        async with pool_of(use("leaky", limit_s=60.0), num_workers=1, settings=SMALL) as pool:
            return await pool.score(group_of(*completions)), pool.metrics()

    results, metrics = asyncio.run(run())
    assert outcomes(results) == ["ok", "error", "ok"]
    assert "above task.reward_memory_mb" in str(results[1].detail["reward_cases.leaky/error"])
    assert metrics["reward/reward_cases.leaky/kills"] == 2.0
    assert metrics["reward/reward_cases.leaky/leaks"] == 0.0


def test_leak_that_meets_the_limit_in_a_call_costs_no_sample() -> None:
    completions = ("200 MB", "100 MB-in-the-call", "1 MB")
    results, metrics = graded(*completions, rewards=(use("leaky", limit_s=60.0),), settings=SMALL)
    assert outcomes(results) == ["ok"] * 3
    assert (metrics["reward/reward_cases.leaky/kills"], metrics["reward/reward_cases.leaky/leaks"]) == (
        1.0,
        1.0,
    )


def test_worker_too_large_from_the_start_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.reward_memory_mb is 5, .*reward_cases\.sample"):
        graded("a", rewards=(use("sample"),), settings=WorkerSettings(memory_mb=5))


def test_growth_blames_the_reward_that_grew_most() -> None:
    growth = Growth(Usage(memory_mb=100, children=0, descriptors=10), limit_mb=1000)
    for step in range(1, 9):
        assert growth.note(0, Usage(memory_mb=100 * step + 10, children=3, descriptors=10)) is None
        assert growth.note(1, Usage(memory_mb=100 * step + 100, children=3, descriptors=10)) is None
    assert growth.memory_leak() is not None
    leak = growth.note(0, Usage(memory_mb=1001, children=3, descriptors=10))
    assert leak is not None
    assert leak.reward == 1
    assert "100 after loading and now has 1001 (task.reward_memory_mb is 1000)" in leak.text


def test_kill_reaches_what_left_the_process_group(tmp_path: Path) -> None:
    (result,) = score(str(tmp_path / "pid"), rewards=(use("session", limit_s=2.0),))
    assert result.outcome == "timeout"
    assert wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())))


def test_workers_killed_at_random_moments_lose_and_change_nothing() -> None:
    async def kill(pool: Any) -> None:
        chooser = random.Random(7)
        for _ in range(6):
            await asyncio.sleep(chooser.uniform(0.05, 0.3))
            if pool.worker_pids:
                os.kill(chooser.choice(pool.worker_pids), signal.SIGKILL)

    async def run() -> tuple[list[list[float | None]], float]:
        async with pool_of(use("sample", limit_s=120.0)) as pool:
            await pool.start()
            killer = asyncio.create_task(kill(pool))
            # What a kill interrupts is graded again after all others: by then the killing is over.
            groups = [group_of("a", "slow 0.02", "b", "slow 0.01") for _ in range(150)]
            results = await asyncio.gather(*map(pool.score, groups))
            await killer
            return [values(one) for one in results], pool.metrics()["reward/reward_cases.sample/kills"]

    results, kills = asyncio.run(run())
    assert results == [[1.0, 1.0, 0.0, 1.0]] * 150
    assert kills >= 2


def test_worker_that_died_idle_is_no_death_of_its_next_sample(tmp_path: Path) -> None:
    async def run() -> tuple[list[RewardResult], float]:
        async with pool_of(use("dies_once", limit_s=60.0), num_workers=1) as pool:
            await pool.start()
            os.kill(pool.worker_pids[0], signal.SIGKILL)
            results = await pool.score(group_of(str(tmp_path / "died")))
            return results, pool.metrics()["reward/reward_cases.dies_once/kills"]

    results, kills = asyncio.run(run())
    assert (values(results), kills) == ([1.0], 2.0)


def test_job_that_no_worker_can_take_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = type("Ghost", (), {"__module__": "ghost"})
    monkeypatch.setitem(sys.modules, "ghost", SimpleNamespace(Ghost=ghost))
    results = score("a", "b", rewards=(use("sample"),), columns={"ghost": ghost()})
    assert outcomes(results) == ["error", "error"]
    assert "ModuleNotFoundError" in str(results[0].detail)


def test_reward_that_hangs_on_every_sample_leaves_a_worker_to_the_others() -> None:
    async def run() -> float:
        async with pool_of(use("sample", limit_s=600.0, when={"task": "hang"}), use("group")) as pool:
            await pool.start()
            hung = [
                asyncio.create_task(pool.score(group_of("hang", columns={"task": "hang"}))) for _ in range(5)
            ]
            start = time.monotonic()
            await asyncio.gather(*(pool.score(group_of("a", "b")) for _ in range(10)))
            for task in hung:
                task.cancel()
            return time.monotonic() - start

    assert asyncio.run(run()) < 300


def test_failures_are_logged_the_first_and_the_tenth_time(caplog: pytest.LogCaptureFixture) -> None:
    score(*["raise"] * 12, rewards=(use("sample"),))
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.partition(":")[0] for line in warnings] == [
        "reward reward_cases.sample failed, number 1",
        "reward reward_cases.sample failed, number 10",
    ]
    for words in ("ValueError: bad sample", "seen in the detail", "in _act"):
        assert words in warnings[0]
    assert "reward_worker.py" not in warnings[0]


def test_retries_of_named_errors_and_their_children_are_counted() -> None:
    retries = {"on": ["ConnectionError"], "times": 3}
    results, metrics = graded("3", "2 busy", rewards=(use("flaky", retries=retries),))
    assert values(results) == [3.0, 2.0]
    assert metrics["reward/reward_cases.flaky/retries"] == 3.0
    assert metrics["reward/reward_cases.flaky/kills"] == 0.0


def test_retries_work_for_asynchronous_rewards() -> None:
    results, _ = graded("3", rewards=(use("flaky_judge", retries={"on": ["builtins.OSError"]}),))
    assert values(results) == [3.0]


@pytest.mark.parametrize(
    ("completion", "limit_s", "words"),
    [
        ("9 value", 60.0, "try 1"),
        ("9", 60.0, "try 3 of 3"),
        ("9", 0.25, "try 2 of 3"),
    ],
)
def test_retries_end_with_another_error_the_last_try_or_the_deadline(
    completion: str, limit_s: float, words: str
) -> None:
    reward = use("flaky", retries={"on": ["ConnectionError"], "times": 2}, limit_s=limit_s)
    (result,), metrics = graded(completion, rewards=(reward,))
    assert result.outcome == "error"
    assert words in str(result.detail)
    assert metrics["reward/reward_cases.flaky/kills"] == 0.0


def test_deadline_is_never_tried_again() -> None:
    retries = {"on": ["TimeoutError", "asyncio.TimeoutError"]}
    (result,), metrics = graded("wait", rewards=(use("judge", limit_s=0.3, retries=retries),))
    assert (result.outcome, metrics["reward/reward_cases.judge/retries"]) == ("timeout", 0.0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NoSuchError", "expected an exception"),
        ("int", "expected an exception"),
        ("Exception", "every error"),
        ("KeyboardInterrupt", "the end of the process"),
        ("no_such_module.Error", "cannot be imported"),
        ("http.client.NoSuch", "expected an exception"),
        ("no_such_file.py:Error", "no file"),
    ],
)
def test_retries_on_what_is_no_passing_error_are_refused(name: str, words: str) -> None:
    with pytest.raises(LoadError, match=rf"task\.rewards\[0\]\.retries\.on.*{words}"):
        score("a", rewards=(use("sample", retries={"on": [name]}),))


@pytest.mark.parametrize(("concurrency", "num_groups", "most"), [(2, 1, 2), (None, 2, 4), (8, 2, 8)])
def test_concurrency_is_how_many_samples_a_worker_awaits(
    concurrency: int, num_groups: int, most: int
) -> None:
    async def run() -> list[RewardResult]:
        async with pool_of(use("crowd", limit_s=60.0, concurrency=concurrency), num_workers=1) as pool:
            await pool.start()
            groups = await asyncio.gather(*(pool.score(group_of(*"abcd")) for _ in range(num_groups)))
            return [result for group in groups for result in group]

    assert set(values(asyncio.run(run()))) == {float(most)}


@pytest.mark.parametrize(("reward", "why"), [("sample", "not `async`"), ("crowd_batch", "in one call")])
def test_concurrency_that_would_do_nothing_is_refused(reward: str, why: str) -> None:
    with pytest.raises(LoadError, match=rf"task\.rewards\[0\]\.concurrency is 8, .*{why}"):
        score("a", rewards=(use(reward, concurrency=8),))


def test_samples_that_shared_a_job_are_told_apart_when_one_blocks() -> None:
    async def run() -> list[list[float | None]]:
        async with pool_of(use("judge", limit_s=0.8, concurrency=16), num_workers=1) as pool:
            await pool.start()
            groups = [group_of("a", "b"), group_of("block"), group_of("b", "wait")]
            return [values(found) for found in await asyncio.gather(*map(pool.score, groups))]

    assert asyncio.run(run()) == [[1.0, 0.0], [None], [0.0, None]]


def test_trl_logs_reach_detail_and_metrics() -> None:
    async def run() -> tuple[list[RewardResult], dict[str, float]]:
        settings = WorkerSettings(max_steps=4)
        async with pool_of(use("trl_logs"), num_workers=1, settings=settings) as pool:
            return await pool.score(group_of("a", "b", version=3)), pool.metrics()

    results, metrics = asyncio.run(run())
    assert [result.detail for result in results] == [{"reward_cases.trl_logs/tokens": 2.0}] * 2
    assert metrics["reward/reward_cases.trl_logs/share_of_steps/mean"] == 0.75


def test_reward_that_applies_to_no_sibling_is_as_if_when_left_it_out() -> None:
    rewards = (use("sample"), use("only_code"))
    assert values(score("a", "b", rewards=rewards, columns={"task": "math"})) == [1.0, 0.0]
    assert values(score("a", "b", rewards=rewards, columns={"task": "code"})) == [2.0, 1.0]
    (result,) = score("a", rewards=rewards[1:], columns={"task": "math"})
    assert (result.value, result.outcome) == (None, "not_applicable")


def test_chance_and_hashes_are_the_same_in_every_worker() -> None:
    async def run() -> list[list[float | None]]:
        async with pool_of(use("guess"), num_workers=3) as pool:
            await pool.start()
            return [
                values(one)
                for one in await asyncio.gather(*(pool.score(group_of(*"abab")) for _ in range(6)))
            ]

    first, *others = asyncio.run(run())
    assert others == [first] * 5
    assert len(set(first)) == 4
