import asyncio
from dataclasses import replace

import pytest

from rlhf.errors import EngineError, RewardError
from rlhf.rollout.evaluate import EvaluationPlan, evaluate
from rlhf.telemetry.metrics import declared, wilson
from rlhf.types import RewardResult, Sampling
from tests.fakes import make_prompt, make_trajectory, run_virtually

GREEDY = Sampling(max_tokens=8, temperature=0.0)


class Verdicts:
    """A reward that hands out one list of values per prompt."""

    def __init__(self, *values: list[float | None]) -> None:
        self.values = values

    async def score(self, group):
        return [
            RewardResult(value=v, parts={} if v is None else {"task": v}) for v in self.values[group.index]
        ]

    async def close(self) -> None: ...


async def roll_out(prompt, *, seeds, sampling):
    await asyncio.sleep(1)
    return [make_trajectory(sample_index=i, reward=None) for i in range(len(seeds))]


def plan(num_prompts: int, num_samples: int = 1) -> EvaluationPlan:
    return EvaluationPlan(
        prompts=[make_prompt(i) for i in range(num_prompts)], sampling=GREEDY, num_samples=num_samples
    )


def test_evaluate_reports_accuracy_with_its_interval():
    found = run_virtually(evaluate(roll_out, Verdicts([1.0], [0.0], [1.0], [1.0]), plan(4)))
    assert found["eval/accuracy"] == 0.75
    assert (found["eval/accuracy_low"], found["eval/accuracy_high"]) == wilson(3, 4)
    assert (found["eval/reward_mean"], found["eval/num_prompts"], found["eval/ungradable"]) == (0.75, 4, 0)
    assert (found["eval/completion_tokens_mean"], found["eval/truncated_share"]) == (3, 0)
    assert "eval/pass_at_k" not in found


def test_evaluate_counts_what_is_not_gradable_apart():
    found = run_virtually(evaluate(roll_out, Verdicts([1.0, None], [None, None], [0.0, 1.0]), plan(3, 2)))
    assert found["eval/accuracy"] == pytest.approx((1.0 + 0.5) / 2)
    assert (found["eval/ungradable"], found["eval/num_prompts"]) == (3, 3)
    assert found["eval/reward_mean"] == pytest.approx(2 / 3)
    assert found["eval/pass_at_k"] == 1.0


def test_evaluate_raises_when_nothing_is_gradable():
    with pytest.raises(RewardError, match="none of 2 samples of 2 prompts"):
        run_virtually(evaluate(roll_out, Verdicts([None], [None]), plan(2)))


def test_evaluate_rolls_all_prompts_out_at_once_and_reports_progress():
    seen = []

    async def timed() -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await evaluate(roll_out, Verdicts(*[[1.0]] * 50), plan(50), progress=lambda *at: seen.append(at))
        return loop.time() - start

    assert run_virtually(timed()) == 1.0
    assert seen == [(i, 50) for i in range(1, 51)]


def test_evaluate_draws_with_the_same_seeds_every_time():
    drawn = []

    async def record(prompt, *, seeds, sampling):
        drawn.append((prompt.id, tuple(seeds), sampling))
        return await roll_out(prompt, seeds=seeds, sampling=sampling)

    for _ in range(2):
        run_virtually(evaluate(record, Verdicts([1.0, 0.0], [1.0, 1.0]), plan(2, 2)))
    assert drawn[:2] == drawn[2:]
    assert len({seed for _, seeds, _ in drawn for seed in seeds}) == 4
    other = replace(plan(2, 2), seed=1)
    run_virtually(evaluate(record, Verdicts([1.0, 0.0], [1.0, 1.0]), other))
    assert drawn[4][1] != drawn[0][1]


def test_evaluate_cancels_the_rest_when_one_prompt_fails():
    cancelled = []

    async def fragile(prompt, *, seeds, sampling):
        if prompt.id == "p0":
            raise EngineError("the engine died")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(prompt.id)
            raise

    with pytest.raises(EngineError, match="the engine died"):
        run_virtually(evaluate(fragile, Verdicts([1.0], [1.0], [1.0]), plan(3)))
    assert cancelled == ["p1", "p2"]


def test_evaluate_metrics_are_declared():
    for name in run_virtually(evaluate(roll_out, Verdicts([1.0, 0.0]), plan(1, 2))):
        declared(name)


def test_evaluate_reports_what_held_out_episodes_logged():
    async def play(prompt, *, seeds, sampling):
        return [
            replace(make_trajectory(sample_index=i), is_episode=True, scalars={"found": float(i)})
            for i in range(len(seeds))
        ]

    found = run_virtually(evaluate(play, Verdicts([1.0, 0.0]), plan(1, num_samples=2)))
    assert found["eval/log/found"] == 0.5
    assert "eval/turns_mean" in found
    assert all(declared(name) for name in found)
