import asyncio
import logging
import random
from functools import partial

import pytest

from rlhf.episodes.lockstep import PATIENCE_S, Lockstep
from rlhf.interfaces import GenerateRequest
from rlhf.types import Completion, Sampling
from tests.fakes import run_virtually


class Engine:
    """Notes what is asked in one tick, and takes a second or more for it."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []
        self._tick = -1.0

    async def generate(self, request):
        now = asyncio.get_running_loop().time()
        if now != self._tick:
            self.rounds.append([])
            self._tick = now
        self.rounds[-1].append(request.prompt_token_ids[0])
        await asyncio.sleep(1 + request.prompt_token_ids[0] % 3)
        return [
            Completion(token_ids=(1,), logprobs=(0.0,), versions=(0,), finish_reason="stop")
            for _ in request.seeds
        ]


async def ask(engine, number):
    request = GenerateRequest(prompt_token_ids=(number,), sampling=Sampling(max_tokens=1), seeds=(0,))
    await engine.generate(request)


async def episode(engine, places, number, *, turns, delay):
    async with places:
        for _ in range(turns):
            await asyncio.sleep(delay())
            await ask(engine, number)


async def play(engine, turns, *, max_live=100, delay):
    rounds, places = Lockstep(engine, max_live=max_live), asyncio.Semaphore(max_live)
    tasks = []
    for number, count in enumerate(turns):
        seat = rounds.enter()
        tasks.append(asyncio.create_task(episode(seat, places, number, turns=count, delay=delay)))
        tasks[-1].add_done_callback(rounds.leave)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("max_live", [3, 100])
def test_rounds_are_the_same_whatever_takes_how_long(max_live):
    turns = [1 + i * 7 % 5 for i in range(12)]
    found = []
    for seed in range(20):
        engine, rng = Engine(), random.Random(seed)
        run_virtually(
            play(engine, turns, max_live=max_live, delay=lambda rng=rng: rng.random() * PATIENCE_S * 0.9)
        )
        found.append(engine.rounds)
    assert all(rounds == found[0] for rounds in found)
    assert sorted(n for asked in found[0] for n in asked) == [
        n for n, count in enumerate(turns) for _ in range(count)
    ]
    if max_live == 100:
        assert found[0] == [[n for n, count in enumerate(turns) if count > i] for i in range(max(turns))]


@pytest.mark.parametrize("max_live", [2, 100])
def test_rounds_of_several_queues_and_single_answers_are_the_same_whatever_takes_how_long(max_live):
    async def mixed(engine, delay):
        rounds, tasks = Lockstep(engine), []
        queues = [rounds.new_queue(max_live), rounds.new_queue(max_live)]
        places = [asyncio.Semaphore(max_live) for _ in queues]
        for number in range(12):
            kind = number % 3
            if kind == 2:
                seat = rounds.enter()
                task = asyncio.create_task(ask(seat, number))
                task.add_done_callback(rounds.leave)
            else:
                seat = rounds.enter(queues[kind])
                played = episode(seat, places[kind], number, turns=1 + number % 4, delay=delay)
                task = asyncio.create_task(played)
                task.add_done_callback(partial(rounds.leave, queue=queues[kind]))
            tasks.append(task)
        await asyncio.gather(*tasks)

    found = []
    for seed in range(20):
        engine, rng = Engine(), random.Random(seed)
        run_virtually(mixed(engine, lambda rng=rng: rng.random() * PATIENCE_S * 0.9))
        found.append(engine.rounds)
    assert all(rounds == found[0] for rounds in found)
    assert {2, 5, 8, 11} < set(found[0][0])


def test_a_round_does_not_wait_for_ever_and_says_so_once(caplog):
    delays = iter([0, 0, 3 * PATIENCE_S, 0, 0, 0, 3 * PATIENCE_S, 0, 0])
    engine = Engine()
    with caplog.at_level(logging.WARNING):
        run_virtually(play(engine, [3, 3, 3], delay=lambda: next(delays)))
    assert engine.rounds[0] == [0, 1]
    assert sum(map(len, engine.rounds)) == 9
    (warning,) = caplog.records
    assert "did not wait for 1 of 3 episodes" in warning.message


def test_a_round_does_not_wait_for_who_is_cancelled():
    async def scenario():
        engine = Engine()
        rounds = Lockstep(engine, max_live=9)
        places = asyncio.Semaphore(9)
        tasks = []
        for number, delay in enumerate([0.0, 0.0, 1000.0]):
            seat = rounds.enter()
            tasks.append(
                asyncio.create_task(episode(seat, places, number, turns=2, delay=lambda delay=delay: delay))
            )
            tasks[-1].add_done_callback(rounds.leave)
        await asyncio.sleep(0.5)
        tasks[2].cancel()
        tasks[1].cancel()
        await tasks[0]
        return engine.rounds, asyncio.get_running_loop().time()

    rounds, ended = run_virtually(scenario())
    assert rounds == [[0], [0]]
    assert ended < PATIENCE_S


def test_a_failing_engine_fails_who_asked_and_nobody_waits_for_it():
    class Broken(Engine):
        async def generate(self, request):
            if request.prompt_token_ids[0] == 1:
                raise OSError("gone")
            return await super().generate(request)

    with pytest.raises(OSError, match="gone"):
        run_virtually(play(Broken(), [2, 2], delay=lambda: 0.0))


def test_an_episode_that_asks_twice_at_once_is_told_of_once(caplog):
    async def scenario():
        engine = Engine()
        rounds = Lockstep(engine, max_live=9)
        seats = rounds.enter(), rounds.enter()
        for _ in range(2):
            await asyncio.gather(ask(seats[0], 0), ask(seats[0], 10), ask(seats[1], 1))
        return engine.rounds

    with caplog.at_level(logging.WARNING):
        assert run_virtually(scenario()) == [[0, 10, 1]] * 2
    (warning,) = caplog.records
    assert "asks for two turns at once" in warning.message
