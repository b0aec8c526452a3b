import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.rewards import RewardConfig
from rlhf.errors import ConfigError, LoadError, RewardError
from rlhf.rollout.scoring import RewardPool
from rlhf.telemetry.metrics import find
from rlhf.types import RewardResult
from tests.unit.rollout.pools import (
    CASES,
    group_of,
    is_alive,
    outcomes,
    pool_of,
    score,
    use,
    values,
    wait_until,
)


def test_scoring_siblings_of_a_hang_keep_their_scores() -> None:
    results = score("a", "hang", "b", "a", rewards=(use("sample", limit_s=2.0),))
    assert values(results) == [1.0, None, 0.0, 1.0]
    assert outcomes(results) == ["ok", "timeout", "ok", "ok"]
    assert "limit_s = 2" in str(results[1].detail["reward_cases.sample/error"])
    assert "about to hang" in str(results[1].detail["reward_cases.sample/output"])


def test_scoring_a_hang_does_not_hold_up_another_worker() -> None:
    async def run() -> bool:
        async with pool_of(use("sample", limit_s=300.0)) as pool:
            await pool.start()
            hung = asyncio.create_task(pool.score(group_of("hang")))
            await asyncio.sleep(0.05)
            await asyncio.gather(*(pool.score(group_of("a", "b")) for _ in range(20)))
            still_hanging = not hung.done()
            hung.cancel()
            return still_hanging

    assert asyncio.run(run())


def test_scoring_kills_what_a_hung_reward_forked(tmp_path: Path) -> None:
    results = score(f"fork {tmp_path / 'pid'}", "a", rewards=(use("sample", limit_s=2.5),))
    assert outcomes(results) == ["timeout", "ok"]
    assert wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())))


@pytest.mark.parametrize(
    ("completion", "words"),
    [
        ("exit", ("exited with code 3", "last words")),
        ("sys.exit", ("SystemExit: 1",)),
        ("raise", ("ValueError: bad sample", "reward_cases.py", "seen in the detail")),
        ("nan", ("returned nan", "finite number")),
        ("inf", ("returned inf",)),
        ("text", ("returned str '1.0'",)),
        ("list", ("returned list",)),
        ("no score", ("'score'",)),
        ("bad outcome", ("'fine'",)),
    ],
)
def test_scoring_a_failing_sample_says_why_and_spares_its_siblings(
    completion: str, words: tuple[str, ...]
) -> None:
    results = score("a", completion, "b", rewards=(use("sample"),))
    assert values(results) == [1.0, None, 0.0]
    assert results[1].outcome == "error"
    assert all(word in " ".join(map(str, results[1].detail.values())) for word in words)


def test_scoring_detail_stays_small_after_a_flood_of_output() -> None:
    (result,) = score("chatter", rewards=(use("sample"),))
    assert sum(len(str(text)) for text in result.detail.values()) <= 2048


def test_scoring_accepts_numbers_none_and_dicts() -> None:
    results = score("true", "none", "dict", rewards=(use("sample"),))
    assert values(results) == [1.0, None, 0.5]
    assert results[1].outcome == "not_applicable"
    assert results[2].parts == {"reward_cases.sample": 0.5, "reward_cases.sample/style": 0.25}


def test_scoring_ignores_a_forked_child_that_returns() -> None:
    assert values(score("child returns", "a", "b", "a", rewards=(use("sample"),))) == [1.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("bad", ["raise", "exit", "hang", "short"])
def test_scoring_bisects_a_batch_to_the_bad_sample(bad: str) -> None:
    results = score("a", "b", bad, "a", rewards=(use("batch", limit_s=0.8 if bad == "hang" else 60.0),))
    assert values(results) == [1.0, 0.0, None, 1.0]
    assert results[2].outcome == ("timeout" if bad == "hang" else "error")


def test_scoring_a_wrong_value_in_a_batch_needs_no_second_run() -> None:
    assert values(score("a", "nan", "b", rewards=(use("batch"),))) == [1.0, None, 0.0]


def test_scoring_a_group_function_sees_all_siblings_and_fails_as_one() -> None:
    assert values(score("a", "a", "b", "c", rewards=(use("group"),))) == [0.5, 0.5, 0.25, 0.25]
    assert outcomes(score("a", "raise", rewards=(use("group"),))) == ["error", "error"]


def test_scoring_calls_trl_and_verl_functions() -> None:
    columns = {"answer": "a", "data_source": "gsm8k", "extra_info": {"index": 7}}
    assert values(score("a", "b", "none", rewards=(use("trl"),), columns=columns)) == [1.0, 0.0, None]
    assert values(score("q", "b", rewards=(use("trl_chat"),))) == [1.0, 0.0]
    (result,) = score("a", rewards=(use("verl"),), columns=columns)
    assert (result.value, result.parts["reward_cases.verl/index"]) == (1.0, 7.0)


def test_scoring_instantiates_a_class_and_hands_tokens_to_who_asks() -> None:
    rewards = (use("Judge", kwargs={"bonus": 0.5}), use("length", kwargs={"scale": 10}))
    (result,) = score("abc", rewards=rewards)
    assert result.parts == {"reward_cases.Judge": 1.5, "reward_cases.length": 20.0}


def test_scoring_runs_asynchronous_samples_together_and_times_out_one() -> None:
    # One after the other, ten answers of 0.2 s each would miss the deadline.
    results = score(*["a"] * 10, "wait", "b", rewards=(use("judge", limit_s=1.9),))
    assert values(results) == [1.0] * 10 + [None, 0.0]
    assert results[10].outcome == "timeout"


def test_scoring_finds_the_asynchronous_sample_that_blocks() -> None:
    results = score("a", "block", rewards=(use("judge", limit_s=1.5),))
    assert values(results) == [1.0, None]


def test_scoring_reports_missing_columns_and_required_ones() -> None:
    async def run() -> tuple[Mapping[str, tuple[str, ...]], list[RewardResult]]:
        async with pool_of(use("trl")) as pool:
            await pool.start()
            return pool.required_columns, await pool.score(group_of("a"))

    required, (result,) = asyncio.run(run())
    assert required == {"reward_cases.trl": ("answer",)}
    assert result.outcome == "error"
    assert "'answer'" in str(result.detail)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (use("unknown"), "solution_str"),
        (use("sample", kwargs={"wrong": 1}), "'wrong'"),
        (use("samples"), "sample"),
        (RewardConfig(use="no_such_module:grade"), "no_such_module"),
        (RewardConfig(use="grade"), "module:attribute"),
    ],
)
def test_scoring_refuses_what_it_cannot_load(reward: RewardConfig, words: str) -> None:
    with pytest.raises(LoadError, match=r"task\.rewards\[1\]") as caught:
        score("a", rewards=(use("sample"), reward))
    assert words in str(caught.value)


def test_scoring_says_how_a_worker_died_while_loading(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("import os; print('here', flush=True); os._exit(5)")
    with pytest.raises(RewardError, match=r"exited with code 5(.|\n)*here"):
        score("a", rewards=(RewardConfig(use=f"{tmp_path / 'dies.py'}:grade"),))


def test_scoring_refuses_only_gates() -> None:
    with pytest.raises(ConfigError, match="gate"):
        RewardPool([use("sample", gate=True)])


def test_worker_imports_neither_torch_nor_ray_nor_vllm() -> None:
    (result,) = score("modules", rewards=(use("sample"),))
    modules = set(str(result.detail["reward_cases.sample/modules"]).split())
    assert modules.isdisjoint({"torch", "ray", "vllm", "numpy", "pydantic", "transformers"})
    assert "rlhf" in modules


@pytest.mark.parametrize("when", ["idle", "working"])
def test_scoring_survives_kill_9_of_a_worker(when: str, tmp_path: Path) -> None:
    mark = tmp_path / "at work"

    async def run() -> tuple[list[RewardResult], float]:
        async with pool_of(use("sample"), num_workers=1) as pool:
            await pool.start()
            if when == "idle":
                os.kill(pool.worker_pids[0], signal.SIGKILL)
            slow = f"slow once {mark}" if when == "working" else "slow 0"
            task = asyncio.create_task(pool.score(group_of("a", slow, "b")))
            if when == "working":
                while not mark.exists():
                    await asyncio.sleep(0.02)
                os.kill(pool.worker_pids[0], signal.SIGKILL)
            return await task, pool.metrics()["reward/reward_cases.sample/kills"]

    results, kills = asyncio.run(run())
    assert values(results) == [1.0, 1.0, 0.0]
    assert kills == 1.0


def test_scoring_leaves_nothing_behind_after_close(tmp_path: Path) -> None:
    async def run() -> tuple[int, ...]:
        async with pool_of(use("sample", limit_s=30.0)) as pool:
            await pool.start()
            busy = asyncio.create_task(pool.score(group_of(f"fork {tmp_path / 'pid'}")))
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                await asyncio.sleep(0.02)
            busy.cancel()
            return pool.worker_pids

    before = len(os.listdir("/proc/self/fd"))
    pids = asyncio.run(run())
    assert len(pids) == 2
    assert not any(map(is_alive, (*pids, int((tmp_path / "pid").read_text()))))
    assert len(os.listdir("/proc/self/fd")) == before


def test_close_fails_a_score_that_is_still_waiting() -> None:
    async def run() -> None:
        async with pool_of(use("sample", limit_s=30.0)) as pool:
            await pool.start()
            waiting = [asyncio.create_task(pool.score(group_of("hang"))) for _ in range(5)]
            await asyncio.sleep(0.1)
            await pool.close()
            for outcome in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60):
                assert isinstance(outcome, RewardError)

    asyncio.run(run())


DRIVER = """
import asyncio, sys
sys.path.insert(0, {root!r})
from rlhf.config.rewards import RewardConfig
from rlhf.rollout.scoring import RewardPool
from tests.unit.rollout.pools import group_of
async def main():
    pool = RewardPool([RewardConfig(use={use!r}, limit_s=600)])
    await pool.start()
    print(*pool.worker_pids, flush=True)
    await pool.score(group_of({completion!r}))
asyncio.run(main())
"""
STUCK = "import re\ndef grade(completion): return re.match('(a+)+$', 'a' * 60 + 'b') is None"


@pytest.mark.parametrize("case", ["idle", "forked", "holding the interpreter lock"])
def test_workers_end_with_a_killed_driver(case: str, tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    reward = f"{tmp_path / 'stuck.py'}:grade" if case.startswith("holding") else f"{CASES}:sample"
    completion = f"fork {tmp_path / 'pid'}" if case == "forked" else "slow 0"
    root = Path(__file__).parents[3]
    program = DRIVER.format(root=str(root), use=reward, completion=completion)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        if case == "forked":
            assert wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
            pids.append(int((tmp_path / "pid").read_text()))
        time.sleep(0.2)
        driver.kill()
    assert len(pids) >= 2
    assert wait_until(lambda: not any(map(is_alive, pids)))


def test_score_stops_the_run_when_too_much_is_not_gradable() -> None:
    async def run() -> str:
        async with pool_of(use("sample"), max_ungradable=0.2) as pool:
            for _ in range(4):
                await pool.score(group_of("a", "a", "a", "raise"))
            with pytest.raises(RewardError) as caught:
                await pool.score(group_of("a", "a", "a", "raise"))
        return str(caught.value)

    message = asyncio.run(run())
    for word in ("reward_cases.sample", "25%", "ValueError: bad sample", "max_ungradable"):
        assert word in message


def test_score_names_prompts_without_a_reward() -> None:
    async def run() -> None:
        async with pool_of(use("sample", when={"source": "math"}), max_ungradable=0.2) as pool:
            (result,) = await pool.score(group_of("a", columns={"source": "code"}))
            assert (result.value, result.outcome) == (None, "not_applicable")
            await pool.score(group_of(*["a"] * 30, columns={"source": "code"}))

    with pytest.raises(RewardError, match="no reward applies"):
        asyncio.run(run())


def test_metrics_tell_outcomes_and_reset() -> None:
    async def run() -> tuple[dict[str, float], dict[str, float]]:
        async with pool_of(use("sample", limit_s=1.5)) as pool:
            await pool.score(group_of("a", "b", "hang", "raise"))
            return pool.metrics(), pool.metrics()

    first, second = asyncio.run(run())
    prefix = "reward/reward_cases.sample"
    assert first[f"{prefix}/mean"] == 0.5
    assert (first[f"{prefix}/timeout"], first[f"{prefix}/error"]) == (0.25, 0.25)
    assert first[f"{prefix}/kills"] == 1.0
    assert first[f"{prefix}/seconds_p99"] >= 1.5
    counts = {f"{prefix}/{name}": 0.0 for name in ("kills", "retries", "leaks")}
    assert second == counts | {"reward/ungradable_share": 0.5}
    assert all(find(name) for name in first)


def test_scoring_never_blocks_the_event_loop() -> None:
    async def longest_gap(work: Awaitable[Any]) -> float:
        task = asyncio.ensure_future(work)
        worst, last = 0.0, time.monotonic()
        while not task.done():
            await asyncio.sleep(0.01)
            worst, last = max(worst, time.monotonic() - last), time.monotonic()
        await task
        return worst

    async def run() -> float:
        async with pool_of(use("sample", limit_s=1.0)) as pool:
            await pool.start()
            return await longest_gap(pool.score(group_of("slow 0.7", "hang", "a")))

    # A stalled machine may take as long, but not each time.
    assert any(asyncio.run(run()) < 0.5 for _ in range(5))
