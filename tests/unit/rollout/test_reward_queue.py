import asyncio
from collections.abc import Awaitable, Callable

from rlhf.rollout.reward_queue import Answers, RewardQueue, RewardTask
from rlhf.types import TrajectoryGroup
from tests.fakes import make_group


def task(reward: int, index: int = 0, *, size: int = 2, is_suspect: bool = False) -> RewardTask:
    group: TrajectoryGroup = make_group(index, rewards=[0.0] * size)
    answers = Answers(results=[None] * size, done=asyncio.get_running_loop().create_future())
    return RewardTask(
        reward=reward, group=group, step=0, indices=tuple(range(size)), answers=answers, is_suspect=is_suspect
    )


def run(test: Callable[[RewardQueue], Awaitable[None]], *, room: int = 1) -> None:
    async def main() -> None:
        await test(RewardQueue(lambda _: room))

    asyncio.run(main())


async def taken(queue: RewardQueue) -> list[tuple[int, int]]:
    return [(one.reward, one.group.index) for one in await queue.take()]


def test_reward_with_the_fewest_workers_goes_first_then_the_oldest_task() -> None:
    async def test(queue: RewardQueue) -> None:
        for reward, index in [(0, 0), (0, 1), (0, 2), (1, 3)]:
            queue.put(task(reward, index))
        assert await taken(queue) == [(0, 0)]
        assert await taken(queue) == [(1, 3)]
        assert await taken(queue) == [(0, 1)]
        queue.free(1)
        queue.put(task(1, 4))
        assert await taken(queue) == [(1, 4)]

    run(test)


def test_tasks_of_one_reward_share_a_job_as_far_as_there_is_room() -> None:
    async def test(queue: RewardQueue) -> None:
        for index in range(4):
            queue.put(task(0, index))
        queue.put(task(1, 4))
        assert await taken(queue) == [(0, 0), (0, 1)]
        assert [one.group.index for one in queue.clear()] == [2, 3, 4]

    run(test, room=5)


def test_suspects_stay_alone() -> None:
    async def test(queue: RewardQueue) -> None:
        queue.put(task(0, 0))
        queue.put(task(0, 1, is_suspect=True))
        queue.put(task(0, 2))
        assert await taken(queue) == [(0, 0), (0, 2)]
        queue.put(task(0, 3))
        assert await taken(queue) == [(0, 1)]

    run(test, room=100)


def test_worker_waits_for_a_task() -> None:
    async def test(queue: RewardQueue) -> None:
        waiting = asyncio.create_task(taken(queue))
        await asyncio.sleep(0)
        queue.put(task(0, 7))
        assert await waiting == [(0, 7)]

    run(test)


def test_part_of_a_task_grades_its_own_samples_only() -> None:
    async def test(_: RewardQueue) -> None:
        whole = task(0, size=4)
        half = whole.part([1, 3], deaths=1)
        assert [t.sample_index for t in half.trajectories().trajectories] == [1, 3]
        assert (half.is_suspect, half.deaths, half.answers) == (True, 1, whole.answers)

    run(test)
