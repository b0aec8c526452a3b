import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from rlhf.types import (
    NOT_SAMPLED,
    Completion,
    Message,
    Prompt,
    Sampling,
    Segment,
    Trajectory,
    TrajectoryGroup,
    Turn,
)

PROMPT = Prompt(id="p", messages=(Message(role="user", content="1+1?"),), reference="2")


def segment(*versions):
    """One token per version; NOT_SAMPLED for a token of the prompt."""
    return Segment(
        token_ids=tuple(range(len(versions))),
        loss_mask=tuple(version != NOT_SAMPLED for version in versions),
        rollout_logprobs=tuple(0.0 for _ in versions),
        versions=versions,
    )


def trajectory(*segments, turns=()):
    return Trajectory(segments=segments, turns=turns, stop="stop", sample_index=0, seed=0)


def test_prompt_without_messages_dies_where_it_is_made():
    with pytest.raises(ValueError, match="'p' has no messages"):
        Prompt(id="p", messages=())


@pytest.mark.parametrize("field", ["token_ids", "logprobs", "versions"])
def test_completion_refuses_fields_of_unequal_length(field):
    completion = Completion(token_ids=(1, 2), logprobs=(-0.1, -0.2), versions=(0, 0), finish_reason="stop")
    with pytest.raises(ValueError, match="one length"):
        replace(completion, **{field: getattr(completion, field)[:1]})


def test_segment_refuses_fields_of_unequal_length():
    ids = (np.array([1], np.int32),)
    for field, value in (("token_ids", (1,)), ("kept", ids), ("routing", np.zeros((1, 2, 2), np.int16))):
        with pytest.raises(ValueError, match="one length"):
            replace(segment(NOT_SAMPLED, 0), **{field: value})


def test_records_that_are_arrays_compare_hash_and_pickle():
    kept = (np.array([], np.int32), np.array([0, 1], np.int32))
    one = replace(segment(NOT_SAMPLED, 0), kept=kept, routing=np.zeros((2, 3, 2), np.int16))
    assert one == replace(one, routing=np.ones((2, 3, 2), np.int16))
    assert hash(one) == hash(segment(NOT_SAMPLED, 0))
    again = pickle.loads(pickle.dumps(one))
    assert again == one
    assert np.array_equal(again.routing, one.routing)
    assert again.kept[1].tolist() == [0, 1]
    assert "kept" not in repr(one)


@pytest.mark.parametrize(
    ("sampling", "reports"),
    [
        ({"top_k": 5}, False),
        ({"kept_limit": 8}, False),
        ({"kept_limit": 8, "top_p": 0.9}, True),
        ({"kept_limit": 8, "top_k": 5}, True),
        ({"kept_limit": 8, "top_k": 5, "temperature": 0.0}, False),
    ],
)
def test_kept_sets_are_reported_where_asked_for_and_truncated(sampling, reports):
    assert Sampling(max_tokens=1, **sampling).reports_kept is reports


@pytest.mark.parametrize("mask", [(True, True), (False, False)])
def test_segment_refuses_a_mask_that_contradicts_the_versions(mask):
    with pytest.raises(ValueError, match="disagree"):
        replace(segment(NOT_SAMPLED, 3), loss_mask=mask)


def test_sampled_tokens_are_counted_over_all_segments():
    assert trajectory(segment(NOT_SAMPLED, 1, 1), segment(NOT_SAMPLED, NOT_SAMPLED, 2)).num_sampled == 3


def test_oldest_version_ignores_what_was_not_sampled():
    old = trajectory(segment(NOT_SAMPLED, 4, 5), segment(NOT_SAMPLED, 3))
    new = trajectory(segment(NOT_SAMPLED, 7))
    empty = trajectory(segment(NOT_SAMPLED))
    assert (old.oldest_version, new.oldest_version, empty.oldest_version) == (3, 7, NOT_SAMPLED)
    assert TrajectoryGroup(index=0, prompt=PROMPT, trajectories=(new, empty, old)).oldest_version == 3
    assert TrajectoryGroup(index=0, prompt=PROMPT, trajectories=(empty,)).oldest_version == NOT_SAMPLED


def test_completion_text_is_that_of_the_last_assistant_turn():
    turns = tuple(
        Turn(message=Message(role=role, content=content), segment=0, start=0, stop=1)
        for role, content in (("assistant", "first"), ("tool", "seen"), ("assistant", "last"), ("user", "ok"))
    )
    assert trajectory(segment(0), turns=turns).completion == "last"
    assert trajectory(segment(0)).completion == ""


def test_records_are_frozen_and_pickle():
    one = trajectory(segment(NOT_SAMPLED, 1))
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(FrozenInstanceError):
        one.seed = 3
