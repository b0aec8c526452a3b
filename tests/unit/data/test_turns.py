"""Rewards of turns on rows of several turns and segments, as an environment's episodes have them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.estimators import dr_grpo
from rlhf.algorithms.gae import reinforce
from rlhf.algorithms.token_rewards import dense_rewards, sequence_rewards
from rlhf.data.packing import pack
from rlhf.data.turns import turn_steps, turn_token_rewards
from rlhf.types import NOT_SAMPLED, Message, RewardResult, Segment, Trajectory, TrajectoryGroup, Turn
from tests.fakes import make_prompt


def episode(*segments, reward=1.0, stop="env_done", overflowed=()):
    """A segment is a list of turns: a number is what a sampled turn of two tokens earned, None a tool's, of one.

    `overflowed`: (segment, token) of sampled tokens whose kept set was too large to be reported.
    """
    rows, turns = [], []
    for number, content in enumerate(segments):
        mask = [False]
        for earned in content:
            start = len(mask)
            mask += [False] if earned is None else [True, True]
            message = Message(role="tool" if earned is None else "assistant", content="x")
            finish = None if earned is None else "stop"
            turn = Turn(message=message, segment=number, start=start, stop=len(mask), finish=finish)
            turns.append(replace(turn, reward=earned or 0.0))
        kept = [[7] if m and (number, i) not in overflowed else [] for i, m in enumerate(mask)]
        rows.append(
            Segment(
                token_ids=tuple(range(len(mask))),
                loss_mask=tuple(mask),
                rollout_logprobs=tuple(-0.5 if m else 0.0 for m in mask),
                versions=tuple(3 if m else NOT_SAMPLED for m in mask),
                kept=tuple(np.array(ids, np.int32) for ids in kept) if overflowed else None,
            )
        )
    return Trajectory(
        segments=tuple(rows),
        turns=tuple(turns),
        stop=stop,
        sample_index=0,
        seed=0,
        reward=RewardResult(value=reward),
        is_episode=True,
    )


def packed(*trajectories, **settings):
    return pack([TrajectoryGroup(index=0, prompt=make_prompt(), trajectories=trajectories)], **settings)


def test_a_turns_reward_stands_where_it_ends_and_the_total_at_the_end():
    one = episode([0.5, None, 0.0], [0.25, None, None, -1.0], reward=2.0)
    rewards = dense_rewards(packed(one))
    # prompt, two sampled, a tool's, two sampled; prompt, two sampled, two of tools, two sampled.
    assert rewards.tolist() == [0, 0, 0.5, 0, 0, 0, 0, 0, 0.25, 0, 0, 0, 2.0 - 0.75]
    assert reinforce(packed(one)).tolist() == [0, 2, 2, 0, 1.5, 1.5, 0, 1.5, 1.5, 0, 0, 1.25, 1.25]


def test_without_turn_rewards_there_are_none():
    assert turn_token_rewards([episode([0.0, None, 0.0])]) is None
    assert packed(episode([0.0], reward=1.0)).token_rewards is None


@pytest.mark.parametrize(
    ("overflowed", "expected"),
    [
        # The turn's last token is not trained: the one before it is where it ends.
        ([(0, 2)], [0, 0.5, 0, 0, 0, 1.5]),
        # The turn trains nothing, and no turn is before it: its reward is part of the total.
        ([(0, 1), (0, 2)], [0, 0, 0, 0, 0, 2.0]),
        # The last turn trains nothing: all stands where the first ends.
        ([(0, 4), (0, 5)], [0, 0, 2.0, 0, 0, 0]),
    ],
)
def test_rewards_reach_a_trained_token_and_the_total_stays(overflowed, expected):
    one = episode([0.5, None, 1.0], reward=2.0, overflowed=overflowed)
    batch = packed(one)
    assert dense_rewards(batch).tolist() == expected
    assert sequence_rewards(batch).tolist() == [2.0]


def test_nothing_trained_has_no_turn_rewards():
    one = episode([0.5, None], overflowed=[(0, 1), (0, 2)])
    assert turn_token_rewards([one]).tolist() == [0.0] * 4
    assert all(math.isnan(value) for value in turn_steps(one)[0])


earnings = st.sampled_from([0.0, 0.1, 0.2, 0.3, -0.7, 1e4, -1e4])
contents = st.lists(st.lists(st.none() | earnings, max_size=4), min_size=1, max_size=3)


@given(episodes=st.lists(st.tuples(contents, earnings), min_size=1, max_size=4))
def test_what_turns_earn_changes_no_total(episodes):
    made = [episode(*content, reward=reward) for content, reward in episodes]
    batch = packed(*made)
    graded = packed(*[replace(t, turns=()) for t in made])
    totals = sequence_rewards(batch)
    # As precisely as a group needs whose rewards are equal, and whose turns earned much that cancels.
    torch.testing.assert_close(totals, sequence_rewards(graded), rtol=0, atol=1e-11)
    trained = [t for t in made if t.num_sampled]
    for trajectory in trained:
        steps = [value for row in turn_steps(trajectory) for value in row if not math.isnan(value)]
        assert math.fsum(steps) == pytest.approx(trajectory.reward.value, abs=1e-9)
        assert len(steps) == sum(turn.finish is not None for turn in trajectory.turns)


def test_steps_of_an_episode_that_could_not_be_graded_are_its_turns():
    one = episode([0.5, None, 0.0], reward=None)
    (row,) = turn_steps(one)
    assert [None if math.isnan(value) else value for value in row] == [None, None, 0.5, None, None, 0.0]


def test_truncated_episodes_are_trained_masked_or_dropped():
    """Of three episodes, the second of two segments and cut by a limit."""
    made = [episode([1.0], reward=3.0), episode([0.5, None], [None, 0.5], reward=1.0, stop="max_turns")]
    made.append(episode([0.0, None, 0.0], reward=0.0, stop="env_done"))
    batches = {how: packed(*made, truncated={"": how}) for how in ("train", "mask", "drop")}
    assert batches["train"].loss_mask.tolist() == [
        m for t in made for segment in t.segments for m in segment.loss_mask
    ]
    assert batches["train"].truncated.tolist() == [False, True, True, False]
    for how in ("mask", "drop"):
        batch = batches[how]
        assert batch.row_sampled().tolist() == [2, 0, 0, 4]
        kept = batch.loss_mask & ~batch.truncated[batch.segment_ids]
        assert torch.equal(kept, batch.loss_mask)
        assert torch.equal(batch.tokens, batches["train"].tokens)
    assert sequence_rewards(batches["train"]).tolist() == [3.0, 1.0, 1.0, 0.0]
    assert sequence_rewards(batches["mask"]).tolist() == [3.0, 1.0, 1.0, 0.0]
    assert batches["drop"].rewards.isnan().tolist() == [False, True, True, False]


def test_masked_episodes_count_in_the_baseline_and_dropped_ones_do_not():
    made = [episode([0.0], reward=3.0), episode([0.0], reward=0.0, stop="length"), episode([0.0], reward=1.0)]
    first = {how: dr_grpo(packed(*made, truncated={"": how})) for how in ("train", "mask", "drop")}
    third = 1 - 4 / 3
    assert first["train"].tolist() == pytest.approx([0, 5 / 3, 5 / 3, 0, -4 / 3, -4 / 3, 0, third, third])
    assert first["mask"].tolist() == pytest.approx([0, 5 / 3, 5 / 3, 0, 0, 0, 0, third, third])
    assert first["drop"].tolist() == pytest.approx([0, 1, 1, 0, 0, 0, 0, -1, -1])
