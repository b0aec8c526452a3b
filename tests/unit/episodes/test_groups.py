"""Groups of which some episodes end in an error, through the producer that a run has: real processes, real scoring."""

import asyncio
import logging

import pytest

from rlhf.config.environment import EnvironmentConfig
from rlhf.config.rewards import RewardConfig
from rlhf.data.packing import pack
from rlhf.data.prompts import PromptStream
from rlhf.episodes.host import EnvironmentHost
from rlhf.episodes.ledger import check_record
from rlhf.episodes.runner import EpisodeRunner
from rlhf.episodes.zygote import LoadEnvironment
from rlhf.rollout.buffer import GroupBuffer
from rlhf.rollout.group import Producer, Sampled
from rlhf.rollout.scoring import RewardPool, WorkerSettings
from rlhf.types import Sampling
from tests.endpoints import TextEngine, make_dialect
from tests.fakes import make_prompt
from tests.unit.algorithms.bundles import algorithm

MODULE = """
from rlhf.types import Message, Step

class FailsForSome:
    def reset(self, prompt, context):
        self.index = int(context.episode_id.split("/")[1])
        self.fails = self.index < prompt.columns["failing"]
    def step(self, action, context):
        if self.fails: raise OSError("the server is gone")
        return Step(terminated=True)
    def score(self, context):
        return float(self.index)

class TwoTurns(FailsForSome):
    def step(self, action, context):
        self.turns = getattr(self, "turns", 0) + 1
        more = [Message(role="user", content="more")]
        return Step(terminated=True) if self.turns == 2 else Step(messages=more)
"""


async def trained_groups(folder, config, *, steps, num_prompts=4):
    """What a run would train on in so many steps of two groups of four, and what it discarded."""
    (folder / "module.py").write_text(MODULE)
    dialect = make_dialect(folder / "model", "qwen2.5")
    host = EnvironmentHost(LoadEnvironment(use=config.use, code_dir=str(folder)))
    rollout = EpisodeRunner(TextEngine(dialect, lambda _: "ok"), host, dialect=dialect, config=config)
    settings = WorkerSettings(environments=(RewardConfig(use=config.use),))
    producer = Producer(
        buffer=GroupBuffer(2, 0),
        prompts=PromptStream([make_prompt(i, failing=i) for i in range(num_prompts)], seed=0),
        work=Sampled(
            rollout=rollout,
            reward=RewardPool([], max_ungradable=1.0, settings=settings),
            sampling=Sampling(max_tokens=20, stop_token_ids=dialect.chat.stop_token_ids),
            samples_per_prompt=4,
            seed=0,
            drop_zero_variance=False,
            least_rewards=config.least_graded(4),
        ),
        version=lambda: 0,
    )
    taken = []
    try:
        await host.start()
        running = asyncio.create_task(producer.run())
        for _ in range(steps):
            taken += await producer.buffer.take()
            producer.buffer.release()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    finally:
        await rollout.close()
        await host.close()
    assert producer.prompts.discarded == producer.buffer.discarded
    return taken, producer.buffer.discarded


def test_group_trains_on_its_survivors_or_is_skipped_and_counted(tmp_path):
    config = EnvironmentConfig(use="module:FailsForSome", min_group=3, retries=0)
    taken, discarded = asyncio.run(trained_groups(tmp_path, config, steps=2))
    assert [group.prompt.id for group in taken].count("p1") == 2
    assert {group.prompt.id for group in taken} == {"p0", "p1"}
    # Of four prompts, two have fewer than three graded samples; to come by the others twice, both were met.
    assert set(discarded) == {"ungradable"}
    assert discarded["ungradable"] >= 2
    group = next(group for group in taken if group.prompt.id == "p1")
    failed, *survivors = group.trajectories
    check_record(failed)
    assert (failed.stop, failed.reward.value, failed.num_sampled > 0) == ("env_error", None, True)
    assert [t.reward.value for t in survivors] == [1.0, 2.0, 3.0]
    chosen = algorithm("dr_grpo")
    batch = pack([group])
    batch = chosen.add_loss_weights(chosen.add_advantages(batch))
    for row, advantage in enumerate([0.0, -1.0, 0.0, 1.0]):
        sampled = batch.loss_mask & (batch.segment_ids == row)
        assert batch.advantages[sampled].tolist() == pytest.approx([advantage] * int(sampled.sum()))
        assert bool((batch.loss_weights[sampled] > 0).all()) is (row > 0)


def test_half_of_a_group_is_enough_unless_told_otherwise():
    config = EnvironmentConfig(use="a:b")
    assert [config.least_graded(size) for size in (1, 4, 5)] == [1, 2, 3]
    assert EnvironmentConfig(use="a:b", min_group=5).least_graded(8) == 5


def test_a_prompt_that_is_live_twice_counts_twice_in_a_round(tmp_path, caplog):
    config = EnvironmentConfig(use="module:TwoTurns", lockstep=True)
    with caplog.at_level(logging.WARNING):
        taken, _ = asyncio.run(trained_groups(tmp_path, config, steps=1, num_prompts=1))
    assert [group.prompt.id for group in taken] == ["p0", "p0"]
    assert all(t.stop == "env_done" for group in taken for t in group.trajectories)
    assert not [r for r in caplog.records if r.name == "rlhf.episodes.lockstep"]
