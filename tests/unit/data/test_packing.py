import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.batch import Batch
from rlhf.data.packing import pack, plan_microbatches, split_microbatches, split_minibatches
from rlhf.data.vision_model import VisionModel
from rlhf.errors import DataError, RewardError
from rlhf.types import NOT_SAMPLED, RewardResult, Segment, Trajectory
from tests.fakes import make_group, make_trajectory
from tests.unit.algorithms.ragged import ragged

lengths_of_rows = st.lists(st.integers(0, 40), max_size=40)


def rows_of_length(lengths: list[int]) -> Batch:
    """A batch whose tokens name their own place, with these row lengths, in groups of two rows."""
    n = sum(lengths)
    return Batch(
        tokens=torch.arange(n),
        positions=torch.cat(
            [torch.arange(length) for length in lengths] or [torch.zeros(0, dtype=torch.int64)]
        ),
        segment_ids=torch.repeat_interleave(
            torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64)
        ),
        loss_mask=torch.ones(n, dtype=torch.bool),
        rollout_logprobs=torch.zeros(n),
        versions=torch.zeros(n, dtype=torch.int64),
        rewards=torch.arange(len(lengths), dtype=torch.float32),
        group_ids=torch.arange(len(lengths)) // 2,
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
    )


def two_segments(*, reward: float | None, sample_index: int = 0) -> Trajectory:
    one = make_trajectory(reward=reward, sample_index=sample_index)
    rewritten = Segment(
        token_ids=(9, 8),
        loss_mask=(False, True),
        rollout_logprobs=(0.0, -2.5),
        versions=(NOT_SAMPLED, 4),
    )
    return replace(one, segments=(*one.segments, rewritten), stop="length")


def test_pack_is_token_exact():
    first = make_group(5, rewards=(0.0, None))
    second = replace(first, index=9, trajectories=(two_segments(reward=0.25), make_trajectory(reward=-1.0)))
    batch = pack([first, second])
    assert batch.tokens.tolist() == [1, 2, 3, 4, 5] * 3 + [9, 8] + [1, 2, 3, 4, 5]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4] * 3 + [0, 1] + [0, 1, 2, 3, 4]
    assert batch.segment_ids.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 2 + [4] * 5
    assert batch.loss_mask.tolist() == [False, False, True, True, True] * 3 + [False, True] + [
        False, False, True, True, True,
    ]  # fmt: skip
    assert batch.rollout_logprobs.tolist() == [0, 0, -0.5, -0.5, -0.5] * 3 + [0, -2.5] + [
        0,
        0,
        -0.5,
        -0.5,
        -0.5,
    ]
    assert batch.versions.tolist() == [-1, -1, 0, 0, 0] * 3 + [-1, 4] + [-1, -1, 0, 0, 0]
    assert batch.group_ids.tolist() == [0, 0, 1, 1, 1]
    assert batch.trajectory_ids.tolist() == [0, 1, 2, 2, 3]
    assert batch.truncated.tolist() == [False, False, True, True, False]
    assert [None if math.isnan(r) else r for r in batch.rewards.tolist()] == [0, None, 0.25, 0.25, -1]
    assert (
        batch.temperatures
        is batch.advantages
        is batch.loss_weights
        is batch.old_logprobs
        is batch.ref_logprobs
        is None
    )


def test_pack_gives_every_row_the_temperature_of_its_trajectory():
    warm = replace(two_segments(reward=0.25), temperature=0.5)
    batch = pack([replace(make_group(), trajectories=(warm, make_trajectory()))])
    assert batch.temperatures.tolist() == [0.5, 0.5, 1.0]


def test_pack_gives_each_row_the_named_parts_of_its_reward():
    first, second = two_segments(reward=1.0), two_segments(reward=2.0, sample_index=1)
    first = replace(first, reward=RewardResult(value=1.0, parts={"b": 3.0, "a": 4.0, "a/detail": 9.0}))
    groups = [replace(make_group(), trajectories=(first, second))]
    assert pack(groups).reward_parts is None
    parts = pack(groups, reward_parts=["a", "b"]).reward_parts
    assert parts.dtype == torch.float32
    assert parts[:2].tolist() == [[4.0, 3.0]] * 2
    assert parts[2:].isnan().all()


def test_pack_of_no_groups_is_an_empty_batch():
    batch = pack([])
    assert (batch.num_tokens, batch.num_rows) == (0, 0)


def test_pack_refuses_what_was_never_scored_or_is_not_finite():
    unscored = replace(make_trajectory(), reward=None)
    infinite = replace(make_trajectory(sample_index=3), reward=RewardResult(value=math.inf))
    for trajectory, message in ((unscored, "sample 0 was not scored"), (infinite, "sample 3 has reward inf")):
        with pytest.raises(RewardError, match=message):
            pack([replace(make_group(), trajectories=(trajectory,))])


def test_pack_refuses_images_instead_of_dropping_them():
    trajectory = make_trajectory()
    with_image = replace(trajectory.segments[0], images=("cat.png",))
    with pytest.raises(DataError, match="images"):
        pack(
            [replace(make_group(), trajectories=(replace(trajectory, segments=(with_image,)),))],
        )


@given(lengths=lengths_of_rows, ranks=st.integers(1, 4), budget=st.integers(40, 130))
def test_split_microbatches_puts_every_row_in_exactly_one_place_within_the_budget(lengths, ranks, budget):
    batch = rows_of_length(lengths)
    shares = split_microbatches(batch, ranks=ranks, budget_tokens=budget)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    micros = [micro for share in shares for micro in share]
    assert all(micro.num_tokens <= budget for micro in micros)
    assert sorted(r for micro in micros for r in micro.rewards.tolist()) == list(range(len(lengths)))
    assert sorted(t for micro in micros for t in micro.tokens.tolist()) == list(range(sum(lengths)))
    for micro in micros:
        assert micro.row_lengths().tolist() == [lengths[int(row)] for row in micro.rewards]


def samples_of_prompts(prompts: int, samples: int, *, prompt: int, sampled: int) -> Batch:
    """Rows that begin with their group's own token, repeated, and go on with tokens of their own."""
    rows = prompts * samples
    batch = rows_of_length([prompt + sampled] * rows)
    group_ids = torch.arange(rows) // samples
    tokens = torch.where(batch.positions < prompt, -1 - group_ids[batch.segment_ids], batch.tokens)
    return replace(batch, tokens=tokens, group_ids=group_ids)


@pytest.mark.parametrize(("ranks", "budget", "micros"), [(2, 180, 16), (2, 360, 8), (4, 360, 4)])
def test_split_microbatches_keeps_samples_together_and_counts_their_prompt_once(ranks, budget, micros):
    batch = samples_of_prompts(32, 8, prompt=100, sampled=10)
    shares = split_microbatches(batch, ranks=ranks, budget_tokens=budget)
    assert [len(share) for share in shares] == [micros] * ranks
    placed = [row for share in shares for micro in share for row in micro.rewards.tolist()]
    assert sorted(placed) == list(range(batch.num_rows))
    for micro in (micro for share in shares for micro in share):
        own = (micro.origins() == torch.arange(micro.num_tokens)).sum()
        assert own == micro.num_rows * 10 + len(set(micro.group_ids.tolist())) * 100 <= budget


@pytest.mark.parametrize("budget", [110, 150, 10_000])
def test_split_microbatches_shares_out_few_prompts_over_many_ranks(budget):
    batch = samples_of_prompts(2, 16, prompt=100, sampled=10)
    shares = split_microbatches(batch, ranks=8, budget_tokens=budget)
    rows = [sum(micro.num_rows for micro in share) for share in shares]
    assert sum(rows) == 32
    assert max(rows) <= min(rows) + 2
    for micro in (micro for share in shares for micro in share):
        assert (micro.origins() == torch.arange(micro.num_tokens)).sum() <= budget


@given(lengths=lengths_of_rows, ranks=st.integers(1, 4))
def test_split_microbatches_is_deterministic_and_is_the_plan(lengths, ranks):
    batch = rows_of_length(lengths)
    plan = plan_microbatches(batch, ranks=ranks, budget_tokens=64)
    shares = split_microbatches(batch, ranks=ranks, budget_tokens=64)
    assert [[m.rewards.tolist() for m in s] for s in shares] == [[r.tolist() for r in s] for s in plan]
    again = plan_microbatches(batch, ranks=ranks, budget_tokens=64)
    assert [[r.tolist() for r in s] for s in again] == [[r.tolist() for r in s] for s in plan]


@given(seed=st.integers(0, 1000), ranks=st.integers(1, 8))
def test_split_microbatches_balances_ranks_at_every_place(seed, ranks):
    g = torch.Generator().manual_seed(seed)
    batch = rows_of_length(torch.randint(20, 400, (512,), generator=g).tolist())
    shares = split_microbatches(batch, ranks=ranks, budget_tokens=8192)
    fewest = math.ceil(batch.num_tokens / (8192 * ranks))
    assert len(shares[0]) <= fewest + 1
    for place in zip(*shares, strict=True):
        tokens = [micro.num_tokens for micro in place]
        assert max(tokens) - min(tokens) <= 0.02 * max(tokens)


@pytest.mark.parametrize(("length", "fit"), [(60, 1), (45, 2), (33, 3), (20, 5)])
def test_split_microbatches_fills_the_budget_whatever_the_row_length(length, fit):
    shares = split_microbatches(rows_of_length([length] * 600), ranks=2, budget_tokens=100)
    assert len(shares[0]) == 600 // fit // 2


def test_split_microbatches_gives_idle_ranks_empty_microbatches():
    shares = split_microbatches(rows_of_length([5]), ranks=3, budget_tokens=8)
    assert sorted(micro.num_rows for share in shares for micro in share) == [0, 0, 1]


def test_split_microbatches_names_the_row_that_does_not_fit():
    with pytest.raises(DataError, match=r"a row has 9 tokens but learner\.microbatch_tokens is 8"):
        split_microbatches(rows_of_length([3, 9]), ranks=1, budget_tokens=8)


@given(
    num_groups=st.sampled_from([4, 8, 12]),
    parts=st.sampled_from([1, 2, 4]),
    seed=st.none() | st.integers(0, 99),
)
def test_split_minibatches_shares_whole_groups_out_equally(num_groups, parts, seed):
    batch = rows_of_length([3, 4] * num_groups)
    minibatches = split_minibatches(batch, parts, seed=seed)
    assert [len(set(m.group_ids.tolist())) for m in minibatches] == [num_groups // parts] * parts
    groups = [set(m.group_ids.tolist()) for m in minibatches]
    assert sum(len(g) for g in groups) == len(set.union(*groups)) == num_groups
    assert sorted(r for m in minibatches for r in m.rewards.tolist()) == list(range(2 * num_groups))
    again = split_minibatches(batch, parts, seed=seed)
    assert [m.tokens.tolist() for m in again] == [m.tokens.tolist() for m in minibatches]


def test_split_minibatches_keeps_the_steps_order_unless_seeded():
    batch = rows_of_length([1] * 16)
    in_order = split_minibatches(batch, 4)
    assert [m.tokens.tolist() for m in in_order] == [list(range(i, i + 4)) for i in (0, 4, 8, 12)]
    orders = {
        tuple(t for m in split_minibatches(batch, 4, seed=s) for t in m.tokens.tolist()) for s in range(5)
    }
    assert len(orders) > 1


def test_split_minibatches_of_scattered_groups_goes_by_id():
    batch = ragged(2, num_rows=12)
    batch = replace(batch, group_ids=torch.tensor([7, -1, 7, 3, -1, 3, 0, 7, 0, 3, -1, 0]))
    first, second = split_minibatches(batch, 2)
    assert set(first.group_ids.tolist()) == {7, -1}
    assert set(second.group_ids.tolist()) == {3, 0}


def test_split_minibatches_refuses_an_unequal_split():
    with pytest.raises(DataError, match="3 groups cannot be split into 2 equal mini-batches"):
        split_minibatches(rows_of_length([1] * 6), 2)


def recorded(*, routing: list[int] | None, kept: list[list[int]] | None) -> Trajectory:
    """Two prompt and three sampled tokens; `routing` gives each token's experts in each of two layers."""
    one = make_trajectory()
    experts = None if routing is None else np.array(routing, np.int16)[:, None, None].repeat(2, 1)
    sets = None if kept is None else tuple(np.array(ids, np.int32) for ids in kept)
    return replace(one, segments=(replace(one.segments[0], routing=experts, kept=sets),))


def test_pack_lays_routing_and_kept_sets_beside_their_tokens():
    trajectories = (
        recorded(routing=[4, 3, 2, 1, -1], kept=[[], [], [1, 3, 9], [4], [5, 7]]),
        recorded(routing=[8, 7, 6, 5, -1], kept=[[], [], [3], [2, 4], [5]]),
    )
    batch = pack([replace(make_group(), trajectories=trajectories)])
    assert batch.routing.dtype == torch.int16
    assert batch.routing.shape == (10, 2, 1)
    assert batch.routing[:, 1, 0].tolist() == [4, 3, 2, 1, -1, 8, 7, 6, 5, -1]
    assert batch.kept_ids.dtype == torch.int32
    assert batch.kept_ids.tolist() == [
        [-1] * 3, [-1] * 3, [1, 3, 9], [4, -1, -1], [5, 7, -1],
        [-1] * 3, [-1] * 3, [3, -1, -1], [2, 4, -1], [5, -1, -1],
    ]  # fmt: skip
    assert batch.loss_mask.tolist() == [False, False, True, True, True] * 2


def test_pack_leaves_tokens_whose_set_overflowed_out_of_the_loss():
    kept = [[], [], [3], [], [5]]
    batch = pack([replace(make_group(), trajectories=(recorded(routing=None, kept=kept),))])
    assert batch.loss_mask.tolist() == [False, False, True, False, True]
    assert batch.row_sampled().tolist() == [2]
    assert batch.routing is None


def test_pack_without_records_has_none_and_mixes_them_with_rows_that_have():
    assert pack([make_group()]).routing is None
    assert pack([make_group()]).kept_ids is None
    trajectories = (recorded(routing=None, kept=None), recorded(routing=[1] * 5, kept=[[]] * 2 + [[2]] * 3))
    batch = pack([replace(make_group(), trajectories=trajectories)])
    assert batch.routing[:, 0, 0].tolist() == [-1] * 5 + [1] * 5
    assert batch.kept_ids[:, 0].tolist() == [-1] * 7 + [2] * 3
    assert batch.loss_mask.tolist() == [False, False, True, True, True] * 2


def test_split_microbatches_counts_a_prompt_again_where_its_experts_differ():
    batch = samples_of_prompts(32, 8, prompt=100, sampled=10)
    routing = torch.zeros(batch.num_tokens, 2, 3, dtype=torch.int16)
    shares = split_microbatches(replace(batch, routing=routing), ranks=1, budget_tokens=360)
    assert len(shares[0]) == 16
    routing[batch.positions == 0] = batch.segment_ids[batch.positions == 0, None, None].short()
    shares = split_microbatches(replace(batch, routing=routing), ranks=1, budget_tokens=360)
    assert len(shares[0]) == math.ceil(256 / 3)


def test_image_tokens_know_their_image_and_travel_with_their_rows():
    vision = VisionModel(folder="", image_id=9, start_id=7, end_id=8, merge=2, banned=(9, 10))
    segments = [
        replace(make_trajectory(prompt_ids=ids).segments[0], images=images)
        for ids, images in [
            ((7, 9, 9, 8, 7, 9, 8), ("a", "b")),
            ((1, 2), ()),
            ((7, 9, 8, 7, 9, 9, 8), ("b", "a")),
        ]
    ]
    group = make_group(rewards=(0.0, 1.0, 2.0))
    group = replace(
        group,
        trajectories=tuple(
            replace(t, segments=(s,)) for t, s in zip(group.trajectories, segments, strict=True)
        ),
    )
    batch = pack([group], vision=vision)
    assert batch.images == ("a", "b")
    assert batch.banned == (9, 10)
    assert batch.image_ids.tolist() == [
        *(-1, 0, 0, -1, -1, 1, -1, -1, -1, -1), *(-1,) * 5, *(-1, 1, -1, -1, 0, 0, -1, -1, -1, -1),
    ]  # fmt: skip
    last = batch.select_rows(torch.tensor([2]))
    assert last.image_ids.tolist() == [-1, 1, -1, -1, 0, 0, -1, -1, -1, -1]
    assert batch.origins()[15:].tolist() == [0, *range(16, 25)]  # the same ids, another image


def test_pack_refuses_another_number_of_images_than_of_runs():
    vision = VisionModel(folder="", image_id=9, start_id=7, end_id=8, merge=2, banned=(9, 10))
    trajectory = make_trajectory(prompt_ids=(7, 9, 8, 7, 9, 8))
    shown = replace(trajectory, segments=(replace(trajectory.segments[0], images=("a",)),))
    group = replace(make_group(rewards=(1.0,)), trajectories=(shown,))
    with pytest.raises(DataError, match="shows 1 images in 2 runs of image tokens"):
        pack([group], vision=vision)
