import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.points import value_at
from rlhf.data.prompts import PromptStream
from rlhf.errors import EngineError, RewardError
from rlhf.rollout.buffer import GroupBuffer
from rlhf.rollout.group import Producer, Sampled, rejection, sample_seed
from rlhf.types import RewardResult, Sampling
from tests.fakes import make_group, make_prompt, make_trajectory, run_virtually

NUM_PROMPTS = 12


@given(st.integers(), st.text(), st.integers(0, 10_000), st.integers(0, 10_000))
def test_seed_fits_every_generator_and_repeats(run_seed, prompt_id, index, version):
    seed = sample_seed(run_seed, prompt_id, index, version)
    assert 0 <= seed < 2**63
    assert seed == sample_seed(run_seed, prompt_id, index, version)


def test_seeds_of_different_samples_differ():
    keys = [(r, p, i, v) for r in range(3) for p in ("a", "b", "a1") for i in range(20) for v in range(20)]
    assert len({sample_seed(*key) for key in keys}) == len(keys)


def test_seed_is_the_same_in_every_process_and_release():
    assert sample_seed(0, "row:0", 0, 0) == 2543999560923752351


@pytest.mark.parametrize(
    ("rewards", "drop", "reason"),
    [
        ((0.0, 1.0), False, None),
        ((0.0, 1.0), True, None),
        ((1.0, 1.0), False, None),
        ((1.0, 1.0), True, "zero_variance"),
        ((None, 1.0), False, "ungradable"),
        ((None, None), True, "ungradable"),
        ((None, 1.0, 0.0), True, None),
        ((None, 1.0, 1.0), True, "zero_variance"),
    ],
)
def test_group_without_a_signal_is_rejected_by_name(rewards, drop, reason):
    assert rejection(make_group(rewards=rewards), drop_zero_variance=drop) == reason


@pytest.mark.parametrize(
    ("rewards", "reason"), [((None, 1.0), None), ((1.0,), None), ((None,), "ungradable")]
)
def test_one_reward_is_enough_where_the_algorithm_compares_nothing(rewards, reason):
    assert rejection(make_group(rewards=rewards), drop_zero_variance=False, least_rewards=1) == reason


@dataclass
class World:
    """A rollout and a reward in which prompt i takes (i % 5) seconds and gets `rewards[i]`."""

    rewards: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    seeds: dict[str, list[int]] = field(default_factory=dict)
    temperatures: dict[str, float] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    version: int = 0

    async def __call__(self, prompt, *, seeds, sampling):
        self.started.append(prompt.id)
        self.temperatures.setdefault(prompt.id, sampling.temperature)
        self.seeds[prompt.id] = list(seeds)
        try:
            await asyncio.sleep(int(prompt.id[1:]) % 5)
        except asyncio.CancelledError:
            self.cancelled.append(prompt.id)
            raise
        if prompt.id in self.broken:
            raise self.broken[prompt.id]
        return [make_trajectory(version=self.version, reward=None, sample_index=i) for i in range(len(seeds))]

    async def score(self, group):
        values = self.rewards.get(group.prompt.id, (0.0, 1.0))
        return [RewardResult(value=v) for v in values]

    async def close(self) -> None: ...


def producer(
    world: World, *, groups_per_step: int = 4, max_staleness: int = 0, drop: bool = False, samples: int = 2
) -> Producer:
    return Producer(
        buffer=GroupBuffer(groups_per_step, max_staleness),
        prompts=PromptStream([make_prompt(i) for i in range(NUM_PROMPTS)], seed=3),
        work=Sampled(
            rollout=world,
            reward=world,
            sampling=Sampling(max_tokens=8),
            samples_per_prompt=samples,
            least_rewards=min(samples, 2),
            seed=5,
            drop_zero_variance=drop,
        ),
        version=lambda: world.version,
    )


async def steps(made: Producer, world: World, count: int) -> list[list]:
    """What the loop takes in `count` steps."""
    running = asyncio.create_task(made.run())
    taken = []
    try:
        for _ in range(count):
            taken.append(await made.buffer.take())
            world.version += 1
            made.buffer.release()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return taken


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_groups_arrive_whole_scored_and_in_admission_order(max_staleness):
    world = World()
    taken = run_virtually(steps(producer(world, max_staleness=max_staleness), world, 3))
    groups = [group for step in taken for group in step]
    assert [group.index for group in groups] == list(range(12))
    assert {group.prompt.id for group in groups} == {f"p{i}" for i in range(12)}
    for group in groups:
        assert [t.sample_index for t in group.trajectories] == [0, 1]
        assert [t.reward.value for t in group.trajectories] == [0.0, 1.0]


def test_groups_of_one_sample_reach_the_loop():
    world = World(rewards={f"p{i}": (1.0,) for i in range(NUM_PROMPTS)})
    (groups,) = run_virtually(steps(producer(world, samples=1), world, 1))
    assert [len(group.trajectories) for group in groups] == [1, 1, 1, 1]


def test_seeds_follow_from_prompt_and_live_version():
    world = World()
    made = producer(world)
    run_virtually(steps(made, world, 3))
    for place, prompt_id in enumerate(world.started[:12]):
        version = place // 4
        key = f"{prompt_id}\x00{place}"
        assert world.seeds[prompt_id] == [sample_seed(5, key, i, version) for i in range(2)]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0, 1.0), (4, 0.6)], [1.0, 0.9, 0.8, 0.7, 0.6, 0.6]),
        ([(1, 1.0), (2, 0.7)], [1.0, 1.0, 0.7, 0.7, 0.7, 0.7]),
        ([(2, 0.5), (3, 1.0), (5, 0.0625)], [0.5, 0.5, 0.5, 1.0, 0.53125, 0.0625]),
        ([(3, 0.7)], [0.7] * 6),
    ],
)
def test_temperature_is_linear_between_points_and_constant_outside_them(points, expected):
    assert [value_at(points, version) for version in range(6)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_trajectories_carry_the_temperature_of_the_version_that_admitted_them(max_staleness):
    world = World()
    made = producer(world, max_staleness=max_staleness)
    made.work = replace(made.work, temperature_points=[(0, 1.0), (8, 0.2)])
    taken = run_virtually(steps(made, world, 3))
    found = {g.prompt.id: {t.temperature for t in g.trajectories} for step in taken for g in step}
    assert found == {prompt_id: {world.temperatures[prompt_id]} for prompt_id in found}
    # The first (max_staleness + 1) steps are admitted at version 0, then one step per version.
    admitted = [max(place // 4 - max_staleness, 0) for place in range(12)]
    expected = [1.0 - 0.1 * version for version in admitted]
    assert [world.temperatures[i] for i in world.started[:12]] == pytest.approx(expected)


def test_discarded_groups_are_replaced_and_counted_by_reason():
    world = World(rewards={"p1": (1.0, 1.0), "p2": (None, 1.0)})
    made = producer(world, drop=True)
    groups = [group for step in run_virtually(steps(made, world, 2)) for group in step]
    assert len(groups) == 8
    assert not {"p1", "p2"} & {group.prompt.id for group in groups}
    met = Counter(world.started)
    assert made.buffer.discarded == {
        reason: met[name] for name, reason in (("p1", "zero_variance"), ("p2", "ungradable")) if met[name]
    }
    assert dict(made.buffer.discarded) == dict(made.prompts.discarded)
    assert made.buffer.discarded


@pytest.mark.parametrize("error", [EngineError("engine 0 died"), RewardError("too many"), KeyError("bug")])
def test_a_failure_reaches_the_loop(error):
    world = World(broken={f"p{i}": error for i in range(0, NUM_PROMPTS, 3)})
    with pytest.raises(type(error)):
        run_virtually(steps(producer(world), world, 3))


def test_a_run_that_only_discards_ends_with_the_cause():
    world = World(rewards={f"p{i}": (1.0, 1.0) for i in range(NUM_PROMPTS)})
    with pytest.raises(RewardError, match=r"zero_variance.*schedule\.max_discarded"):
        run_virtually(steps(producer(world, drop=True), world, 1))


def test_ending_the_loop_cancels_what_is_in_flight():
    world = World()
    made = producer(world, max_staleness=1)
    run_virtually(steps(made, world, 1))
    assert world.cancelled
    assert made.buffer.in_flight == len(set(world.cancelled))
