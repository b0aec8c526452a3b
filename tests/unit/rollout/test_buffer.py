import asyncio
import random
from dataclasses import dataclass, field

import pytest

from rlhf.errors import RewardError
from rlhf.rollout.buffer import GroupBuffer
from tests.fakes import make_group, run_virtually


@dataclass
class Simulation:
    """The loop's skeleton with random durations: what was trained, how late, and what was admitted together."""

    max_staleness: int
    groups_per_step: int
    num_steps: int
    rng: random.Random
    discard_share: float
    version: int = 0
    ages: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    waves: list[int] = field(default_factory=list)
    overlapped: bool = False

    async def run(self) -> None:
        buffer = GroupBuffer(self.groups_per_step, self.max_staleness, max_discarded=0.99)
        producer = asyncio.create_task(self._produce(buffer))
        for _ in range(self.num_steps):
            groups = await buffer.take()
            self.ages += [self.version - group.oldest_version for group in groups]
            self.order += [group.index for group in groups]
            self.overlapped |= buffer.in_flight > 0
            await asyncio.sleep(self.rng.expovariate(1))
            self.version += 1
            buffer.release()
        producer.cancel()

    async def _produce(self, buffer: GroupBuffer) -> None:
        index = 0
        while True:
            free = await buffer.free_slots()
            self.waves.append(free)
            for _ in range(free):
                buffer.admit(index)
                asyncio.create_task(self._one(buffer, index, self.version))  # noqa: RUF006
                index += 1

    async def _one(self, buffer: GroupBuffer, index: int, version: int) -> None:
        await asyncio.sleep(self.rng.paretovariate(1.2))
        if self.rng.random() < self.discard_share:
            buffer.discard(index, "zero_variance")
        else:
            buffer.finish(make_group(index, version=version))


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
@pytest.mark.parametrize("discard_share", [0.0, 0.4])
def test_buffer_never_hands_out_a_group_older_than_the_bound(
    max_staleness: int, discard_share: float
) -> None:
    reached = 0
    for seed in range(150):
        rng = random.Random(seed)
        simulation = Simulation(max_staleness, rng.randint(1, 5), 12, rng, discard_share)
        run_virtually(simulation.run())
        assert max(simulation.ages) <= max_staleness
        assert simulation.order == sorted(set(simulation.order))
        reached = max(reached, *simulation.ages)
    assert reached == max_staleness  # the bound is tight: the simulation can tell a wrong one


@pytest.mark.parametrize("max_staleness", [1, 4])
def test_buffer_lets_generation_and_training_overlap_when_asynchronous(max_staleness: int) -> None:
    simulation = Simulation(max_staleness, 3, 10, random.Random(1), 0.0)
    run_virtually(simulation.run())
    assert simulation.overlapped


def test_buffer_admits_whole_waves_when_synchronous() -> None:
    simulation = Simulation(0, 4, 10, random.Random(3), 0.3)
    run_virtually(simulation.run())
    assert not simulation.overlapped
    assert simulation.waves[0] == 4


def test_buffer_take_raises_what_broke_the_producer() -> None:
    async def main() -> None:
        buffer = GroupBuffer(2, 0)
        buffer.fail(RuntimeError("engine 0 died"))
        await buffer.take()

    with pytest.raises(RuntimeError, match="engine 0 died"):
        run_virtually(main())


def test_buffer_stops_when_almost_every_group_is_discarded() -> None:
    async def main() -> None:
        buffer = GroupBuffer(2, 0, max_discarded=0.5)
        for index in range(100):
            buffer.admit(index)
            buffer.discard(index, "zero_variance")

    with pytest.raises(RewardError, match=r"schedule\.max_discarded"):
        run_virtually(main())
