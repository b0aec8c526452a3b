import math
from dataclasses import replace

import pytest

from rlhf.data.packing import pack
from rlhf.data.steps import step_rewards
from rlhf.errors import RewardError
from rlhf.types import RewardResult, Trajectory
from tests.fakes import make_group, make_trajectory

WORDS = {3: "one ", 4: "", 5: "two three", 6: " four"}


def decode(ids) -> str:
    return "".join(WORDS[i] for i in ids)


def judged(*steps: tuple[int, float]) -> Trajectory:
    made = make_trajectory(prompt_ids=(1, 2), sampled_ids=(3, 4, 5, 6), text=decode([3, 4, 5, 6]))
    return replace(made, reward=RewardResult(value=1.0, steps=steps))


@pytest.mark.parametrize(("end", "token"), [(1, 2), (3, 2), (4, 2), (5, 4), (13, 4), (14, 5), (18, 5)])
def test_a_step_ends_with_the_token_that_holds_its_last_character(end, token):
    rewards = step_rewards([judged((end, 0.5))], decode).tolist()
    assert [place for place, value in enumerate(rewards) if not math.isnan(value)] == [token]
    assert rewards[token] == 0.5


def test_steps_that_end_on_one_token_add_up():
    assert step_rewards([judged((5, 0.5), (13, -2.0))], decode)[4] == -1.5


def test_steps_of_several_trajectories_lie_row_after_row():
    group = replace(make_group(), trajectories=(judged((4, 1.0)), judged(), judged((18, 2.0))))
    found = pack([group], decode=decode).step_rewards
    assert found.isnan().sum() == 16
    assert (found[2], found[17]) == (1.0, 2.0)
    assert pack([group]).step_rewards is None


@pytest.mark.parametrize("end", [0, -3, 19])
def test_a_step_outside_the_completion_is_refused(end):
    with pytest.raises(RewardError, match="expected 1 to 18"):
        step_rewards([judged((end, 1.0))], decode)


def test_turns_of_an_episode_are_steps_whatever_they_earned():
    assert step_rewards([replace(judged(), is_episode=True)], decode).tolist()[-1] == 1.0
    earned = step_rewards([replace(judged((5, 0.5)), is_episode=True), judged((5, 0.5))], decode).tolist()
    assert [value for value in earned if not math.isnan(value)] == [0.5, 1.0, 0.5]


def test_rewards_without_any_step_are_refused():
    with pytest.raises(RewardError, match="no reward of this step's samples gave steps"):
        step_rewards([judged(), judged()], decode)
