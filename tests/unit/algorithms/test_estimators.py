"""Every estimator of the registry against its slow version, and what must not change any of them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.estimators import ADVANTAGES
from rlhf.batch import Batch
from rlhf.errors import ConfigError
from tests.unit.algorithms import advantage_reference as slow
from tests.unit.algorithms.ragged import ragged, with_padding, with_token_fields
from tests.unit.algorithms.rows import rows_of

NAN = float("nan")
seeds = st.integers(0, 10_000)
SLOW: dict[str, Callable[..., list[float]]] = {
    "grpo": slow.grpo,
    "dr_grpo": slow.dr_grpo,
    "batch_std": slow.batch_std,
    "rloo": slow.rloo,
    "reinforce": slow.reinforce,
    "reinforce_pp": slow.reinforce,
    "reinforce_pp_baseline": slow.dr_grpo,
    "opo": slow.opo,
    "gdpo": slow.gdpo,
    "maxrl": slow.maxrl,
    "pass_at_k": slow.pass_at_k,
    "process": slow.process,
    "gae": slow.gae,
    "distill": slow.distill,
}
BY_GROUP = ("grpo", "dr_grpo", "batch_std", "rloo", "opo", "maxrl")
CASES = [
    *((name, {}) for name in (*BY_GROUP, "reinforce_pp_baseline", "process", "distill")),
    ("reinforce", {"gamma": 0.9}),
    ("reinforce_pp", {"gamma": 1.0}),
    ("gdpo", {"weights": (1.0, -0.5, 2.0)}),
    ("pass_at_k", {"k": 1, "correct_above": 0.0}),
    ("pass_at_k", {"k": 2, "correct_above": 0.5}),
    ("gae", {"gamma": 0.9, "lam": 0.8}),
    ("gae", {"gamma": 0.95, "length_alpha": 0.3, "bootstrap_truncated": True}),
]
each = pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{n}-{s}" for n, s in CASES])


def case(seed: int, *, num_rows: int = 12) -> Batch:
    return with_token_fields(ragged(seed, num_rows=num_rows), seed)


def close(found: torch.Tensor, expected: torch.Tensor | list[float]) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_every_estimator_of_the_registry_has_a_slow_version():
    assert set(SLOW) == set(ADVANTAGES) == {name for name, _ in CASES}


@each
@given(seed=seeds)
def test_estimator_agrees_with_the_slow_reference(name, settings, seed):
    for batch in (case(seed), replace(case(seed), token_rewards=None, old_logprobs=None)):
        close(ADVANTAGES[name](batch, **settings), SLOW[name](batch, **settings))


@each
@given(seed=seeds)
def test_untrained_tokens_change_nothing_whatever_they_hold(name, settings, seed):
    batch = case(seed)
    padded = with_padding(batch, seed)
    found = ADVANTAGES[name](padded, **settings)
    assert torch.equal(found[padded.loss_mask], ADVANTAGES[name](batch, **settings)[batch.loss_mask])
    assert found[~padded.loss_mask].count_nonzero() == 0


@each
@given(seed=seeds)
def test_order_of_trajectories_and_names_of_groups_change_nothing(name, settings, seed):
    batch = case(seed)
    whole = ADVANTAGES[name](batch, **settings)
    order = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(seed))
    # Rows of one trajectory stay in their order: it is the order of time.
    order = order[torch.argsort(batch.trajectory_ids[order], stable=True)]
    for i in batch.trajectory_ids.unique():
        mine = batch.trajectory_ids[order] == i
        order[mine] = order[mine].sort().values
    moved = batch.select_rows(order)
    moved = replace(moved, group_ids=100 - 3 * moved.group_ids, trajectory_ids=-moved.trajectory_ids)
    close(ADVANTAGES[name](moved, **settings), whole[batch.token_index(order)])


@each
@given(seed=seeds)
def test_split_by_whole_groups_changes_nothing(name, settings, seed):
    if name in ("batch_std", "pass_at_k"):  # one is about the whole batch, the other refuses small groups
        return
    batch = case(seed)
    whole = ADVANTAGES[name](batch, **settings)
    for group in batch.group_ids.unique():
        rows = torch.nonzero(batch.group_ids == group).squeeze(1)
        close(ADVANTAGES[name](batch.select_rows(rows), **settings), whole[batch.token_index(rows)])


@each
def test_ungradable_all_masked_and_empty_batches_give_zeros(name, settings):
    batch = case(4)
    hopeless = replace(batch, rewards=torch.full_like(batch.rewards, NAN))
    masked = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    empty = batch.select_rows(torch.arange(0))
    for nothing in (hopeless, masked):
        found = ADVANTAGES[name](nothing, **settings)
        assert torch.equal(found, torch.zeros(batch.num_tokens).double())
    if name != "pass_at_k":
        assert ADVANTAGES[name](empty, **settings).numel() == 0


@each
@given(seed=seeds)
def test_dtype_is_that_of_the_batch_and_statistics_are_exact(name, settings, seed):
    batch = case(seed)
    names = ("rollout_logprobs", "old_logprobs", "rewards", "values", "last_values", "token_rewards",
             "step_rewards", "reward_parts", "teacher_logprobs")  # fmt: skip
    single = replace(batch, **{n: getattr(batch, n).float() for n in names})
    double = replace(single, **{n: getattr(single, n).double() for n in names})
    found = ADVANTAGES[name](single, **settings)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ADVANTAGES[name](double, **settings).float(), rtol=1e-6, atol=1e-7)


@each
@given(seed=seeds)
def test_rewards_of_an_ungradable_trajectory_touch_no_other(name, settings, seed):
    batch = case(seed)
    lost = torch.isnan(batch.rewards)
    of_lost = lost[batch.segment_ids] & batch.loss_mask
    other = replace(
        batch,
        token_rewards=torch.where(of_lost, 7.0, batch.token_rewards),
        step_rewards=torch.where(of_lost, 7.0, batch.step_rewards),
        reward_parts=torch.where(lost[:, None], 7.0, batch.reward_parts),
        values=torch.where(of_lost, 7.0, batch.values),
    )
    found = ADVANTAGES[name](other, **settings)
    assert torch.equal(found, ADVANTAGES[name](batch, **settings))
    assert found[of_lost].count_nonzero() == 0


@pytest.mark.parametrize("name", [*BY_GROUP, "gdpo", "process", "pass_at_k"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "rewards", [[0.1] * 3, [0.1 + 0.2, 0.3, 0.3], [1e6] * 2, [5.0], [NAN, 2.0], [0.0] * 4]
)
def test_equal_rewards_and_groups_of_one_are_exact_zeros(name, dtype, rewards):
    batch = rows_of([2] * len(rewards), rewards=rewards, dtype=dtype)
    batch = replace(
        batch,
        reward_parts=batch.rewards[:, None].repeat(1, 2),
        step_rewards=batch.rewards[batch.segment_ids],
    )
    found = ADVANTAGES[name](batch, **({"k": 1} if name == "pass_at_k" else {}))
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", [0.75 / 0.500001, -0.25 / 0.500001]),
        ("dr_grpo", [0.75, -0.25]),
        ("rloo", [1.0, -1 / 3]),
        ("opo", [1 - 4 / 10, -4 / 10]),
        ("maxrl", [3.0, -1.0]),
        ("batch_std", [0.75 / (6**-0.5 + 1e-6), -0.25 / (6**-0.5 + 1e-6)]),
    ],
)
def test_hand_worked_group_of_one_right_and_three_wrong(name, expected):
    batch = rows_of([4, 1, 2, 3, 5, 5], rewards=[1, 0, 0, 0, 0, 0], group_ids=[9, 9, 9, 9, 3, 3])
    found = ADVANTAGES[name](batch).tolist()
    assert found[:4] == pytest.approx([expected[0]] * 4, abs=1e-12)
    assert found[4:10] == pytest.approx([expected[1]] * 6, abs=1e-12)
    assert found[10:] == [0.0] * 10


def test_a_reward_that_the_penalty_alone_varies_is_no_signal_for_maxrl():
    batch = rows_of([1, 1], rewards=[0, 0])
    batch = replace(batch, token_rewards=torch.tensor([-0.1, -0.3]).double())
    assert ADVANTAGES["maxrl"](batch).tolist() == [0.0, 0.0]
    assert ADVANTAGES["dr_grpo"](batch).tolist() == pytest.approx([0.1, -0.1])


@pytest.mark.parametrize("rewards", [[0.1, 0.2, -0.3], [-0.3, 0.1, 0.2], [1.0, -2.0], [-0.5, 0.5]])
def test_maxrl_does_not_divide_by_a_mean_that_is_only_rounding(rewards):
    assert ADVANTAGES["maxrl"](rows_of([1] * len(rewards), rewards=rewards)).count_nonzero() == 0


def test_maxrl_does_not_take_small_rewards_for_rounding():
    found = ADVANTAGES["maxrl"](rows_of([1, 1], rewards=[3e-12, 1e-12])).tolist()
    assert found == pytest.approx([0.5, -0.5], abs=1e-9)


@each
def test_without_trajectory_ids_every_row_is_a_trajectory(name, settings):
    batch = replace(case(7), trajectory_ids=torch.arange(12))
    bare = replace(batch, trajectory_ids=None)
    assert torch.equal(ADVANTAGES[name](bare, **settings), ADVANTAGES[name](batch, **settings))


def test_truncated_trajectories_belong_to_the_baseline():
    batch = rows_of([1, 1], rewards=[1, 0])
    cut = replace(batch, truncated=torch.tensor([False, True]))
    assert ADVANTAGES["dr_grpo"](cut).tolist() == ADVANTAGES["dr_grpo"](batch).tolist() == [0.5, -0.5]


@given(n=st.integers(1, 9), right=st.integers(0, 9), k=st.integers(1, 9))
def test_pass_at_k_agrees_with_all_subsets_and_sums_to_zero(n, right, k):
    batch = rows_of([1] * n, rewards=[float(i < right) for i in range(n)])
    if k > n:
        with pytest.raises(ConfigError, match=f"k = {k}, and the largest group of the step has {n}"):
            ADVANTAGES["pass_at_k"](batch, k=k)
        return
    found = ADVANTAGES["pass_at_k"](batch, k=k)
    close(found, slow.pass_at_k(batch, k=k, correct_above=0.0))
    assert found.sum().item() == pytest.approx(0, abs=1e-9)


def test_pass_at_k_of_a_hand_worked_group():
    # Four samples, one right, pairs: 3 of 6 pairs hold it; s = 1/2. Of a wrong one's 3 pairs, 1 holds it.
    batch = rows_of([1] * 4, rewards=[1, 0, 0, 0])
    found = ADVANTAGES["pass_at_k"](batch, k=2).tolist()
    assert found == pytest.approx([1.0] + [-1 / 3] * 3, abs=1e-5)
    assert ADVANTAGES["pass_at_k"](batch, k=4).tolist() == [0.0] * 4
    short = replace(batch, rewards=torch.tensor([1, 0, NAN, NAN]).double())
    assert ADVANTAGES["pass_at_k"](short, k=3).tolist() == [0.0] * 4


@pytest.mark.parametrize("k", [0, -1])
def test_pass_at_k_refuses_a_k_below_one(k):
    with pytest.raises(ConfigError, match="from 1 to the group size"):
        ADVANTAGES["pass_at_k"](rows_of([1, 1], rewards=[1, 0]), k=k)


def test_gdpo_keeps_apart_what_a_sum_of_rewards_confuses():
    batch = rows_of([1] * 3, rewards=[1, 1, 0])
    parts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, NAN]]).double()
    found = ADVANTAGES["gdpo"](replace(batch, reward_parts=parts)).tolist()
    first, second = 1 / (3**-0.5 + 1e-6), 1 / (0.5**0.5 + 1e-6)
    expected = [2 / 3 * first - second / 2, -first / 3 + second / 2, -first / 3]
    assert found == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ConfigError, match="3 weights but the reward has 2 parts"):
        ADVANTAGES["gdpo"](replace(batch, reward_parts=parts), weights=[1.0, 2.0, 3.0])


def test_process_supervision_gives_each_step_what_follows_it():
    batch = rows_of([4, 3], rewards=[1, 0], mask=[1, 0, 1, 1, 1, 1, 1])
    steps = torch.tensor([1, 50, NAN, 0, NAN, 0, 3]).double()
    found = ADVANTAGES["process"](replace(batch, step_rewards=steps)).tolist()
    a, b, c = ((r - 1) / (2**0.5 + 1e-6) for r in (1, 0, 3))
    assert found == pytest.approx([a + b, 0, b, b, b + c, b + c, c], abs=1e-12)


def test_distillation_has_no_gradient():
    batch = case(1)
    fields = ("old_logprobs", "teacher_logprobs")
    live = replace(batch, **{name: getattr(batch, name).clone().requires_grad_() for name in fields})
    assert not ADVANTAGES["distill"](live).requires_grad


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("gdpo", "reward_parts"),
        ("process", "step_rewards"),
        ("distill", "teacher_logprobs"),
        ("gae", "values"),
    ],
)
def test_a_missing_ingredient_is_named(name, field):
    with pytest.raises(ValueError, match=field):
        ADVANTAGES[name](replace(case(1), **{field: None}))
