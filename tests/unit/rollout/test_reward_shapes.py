from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.importing import load_function
from rlhf.rollout.reward_shapes import RewardFunction, bind
from rlhf.rollout.reward_values import as_result
from rlhf.types import Message, Prompt, Role, Segment, Trajectory, TrajectoryGroup, Turn


def case(name: str) -> RewardFunction:
    path = Path(__file__).with_name("reward_cases.py")
    return bind(load_function(f"{path}:{name}", key="use"), {}, key="task.rewards[0]")


def group_of(*roles: Role) -> TrajectoryGroup:
    segment = Segment(
        token_ids=(1, 2), loss_mask=(False, True), rollout_logprobs=(0.0, -1.0), versions=(-1, 0)
    )
    turn = Turn(message=Message(role="assistant", content="a"), segment=0, start=1, stop=2)
    trajectory = Trajectory(segments=(segment,), turns=(turn,), stop="stop", sample_index=0, seed=0)
    messages = tuple(Message(role=role, content="q") for role in roles)
    prompt = Prompt(id="p", messages=messages, columns={"answer": "a"})
    return TrajectoryGroup(index=0, prompt=prompt, trajectories=(trajectory,))


def test_trl_function_gets_messages_for_a_prompt_of_several() -> None:
    assert case("trl_bare").call_batch(group_of("system", "user")) == [1.0]
    assert case("trl").call_batch(group_of("system", "user")) == [1.0]
    with pytest.raises(TypeError, match=r"annotate .*completions: list\[list\[dict\]\]"):
        case("trl_bare").call_batch(group_of("user"))
