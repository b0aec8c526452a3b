"""Held-out evaluation: how often the policy is right, and how sure we can be."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf.errors import RewardError
from rlhf.interfaces import Reward, RolloutFunction
from rlhf.rollout.estimates import pass_at_k
from rlhf.rollout.group import sample_seed
from rlhf.rollout.statistics import environment_metrics, is_correct
from rlhf.telemetry.metrics import find, wilson
from rlhf.types import Prompt, RewardResult, Sampling, Trajectory, TrajectoryGroup

Progress = Callable[[int, int], None]
"""(prompts done, prompts in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What is asked. A plan draws with the same seeds at every weight version; temperature 0 is greedy."""

    prompts: Sequence[Prompt]
    sampling: Sampling
    num_samples: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Sample:
    trajectory: Trajectory
    result: RewardResult


async def evaluate(
    rollout: RolloutFunction, reward: Reward, plan: EvaluationPlan, *, progress: Progress | None = None
) -> dict[str, float]:
    """The `eval/` metrics of a plan; all prompts are rolled out and graded at once.

    Accuracy is the mean over problems of the share of right samples among the gradable ones; its interval is
    Wilson's, with problems as the trials. Samples that were not gradable count in `eval/ungradable`, not in
    accuracy, reward or pass@k. Raises RewardError when nothing was gradable.
    """
    done = 0

    async def one(index: int) -> list[_Sample]:
        nonlocal done
        samples = await _attempt(rollout, reward, plan, index=index)
        done += 1
        if progress is not None:
            progress(done, len(plan.prompts))
        return samples

    tasks = [asyncio.create_task(one(i), name=f"evaluate {p.id}") for i, p in enumerate(plan.prompts)]
    try:
        problems = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return _metrics(problems, num_samples=plan.num_samples)


async def _attempt(
    rollout: RolloutFunction, reward: Reward, plan: EvaluationPlan, *, index: int
) -> list[_Sample]:
    prompt = plan.prompts[index]
    seeds = [sample_seed(plan.seed, prompt.id, i, 0) for i in range(plan.num_samples)]
    trajectories = await rollout(prompt, seeds=seeds, sampling=plan.sampling)
    group = TrajectoryGroup(index=index, prompt=prompt, trajectories=tuple(trajectories))
    results = await reward.score(group)
    return [_Sample(t, r) for t, r in zip(trajectories, results, strict=True)]


def _metrics(problems: Sequence[Sequence[_Sample]], *, num_samples: int) -> dict[str, float]:
    samples = [sample for problem in problems for sample in problem]
    gradable = [[s.result for s in problem if s.result.value is not None] for problem in problems]
    rewards = [r.value for results in gradable for r in results if r.value is not None]
    if not rewards:
        raise RewardError(
            f"evaluation: none of {len(samples)} samples of {len(problems)} prompts could be graded. "
            "Try the rewards on gold answers with `rlhf check`."
        )
    solved = [sum(map(is_correct, results)) / len(results) for results in gradable if results]
    accuracy = math.fsum(solved) / len(solved)
    low, high = wilson(math.fsum(solved), len(solved))
    metrics = {
        "eval/accuracy": accuracy,
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/reward_mean": math.fsum(rewards) / len(rewards),
        "eval/completion_tokens_mean": sum(s.trajectory.num_sampled for s in samples) / len(samples),
        "eval/truncated_share": sum(s.trajectory.status == "truncated" for s in samples) / len(samples),
        "eval/num_prompts": float(len(problems)),
        "eval/ungradable": float(len(samples) - len(rewards)),
    }
    for name, value in environment_metrics([sample.trajectory for sample in samples]).items():
        held_out = name.replace("env/", "eval/", 1)
        if find(held_out) is not None:
            metrics[held_out] = value
    complete = [results for results in gradable if len(results) == num_samples]
    if num_samples > 1 and complete:
        chances = [pass_at_k(num_samples, sum(map(is_correct, r)), num_samples) for r in complete]
        metrics["eval/pass_at_k"] = math.fsum(chances) / len(chances)
    return metrics
