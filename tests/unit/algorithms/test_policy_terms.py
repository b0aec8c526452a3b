import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.policy_terms import (
    POLICIES,
    PolicyInputs,
    cispo,
    clip_cov,
    dppo,
    gspo,
    gspo_token,
    kl_cov,
    ppo,
    reinforce,
    sapo,
    select_by_covariance,
    trained_tokens,
)
from tests.unit.algorithms import loss_reference, reference
from tests.unit.algorithms.ragged import garbage, ragged, with_padding

seeds = st.integers(0, 10_000)


def inputs(ratios: list[float], advantages: list[float], *, rows: list[int] | None = None, **changed):
    """Inputs of the given ratios, old = -2 everywhere; `new` is the leaf."""
    log_ratio = torch.tensor(ratios, dtype=torch.float64).log()
    new = (log_ratio - 2).requires_grad_()
    old = torch.full_like(log_ratio, -2.0)
    index = torch.zeros(len(ratios), dtype=torch.int64) if rows is None else torch.tensor(rows)
    made = PolicyInputs(
        new=new,
        old=old,
        rollout=old,
        log_ratio=new - old,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        rows=index,
        num_rows=int(index.max()) + 1 if ratios else 0,
    )
    return replace(made, **changed)


def gradient(term, made: PolicyInputs, **settings) -> list[float]:
    loss, _ = term(made, **settings)
    (found,) = torch.autograd.grad(loss.sum(), made.new, materialize_grads=True)
    return found.tolist()


@given(
    cases=st.lists(st.tuples(st.floats(0.1, 8), st.floats(-3, 3)), min_size=1),
    dual=st.none() | st.floats(1.5, 4),
)
def test_ppo_agrees_with_values_and_gradients_by_hand(cases, dual):
    ratios, advantages = [r for r, _ in cases], [a for _, a in cases]
    made = inputs(ratios, advantages)
    loss, caught = ppo(made, clip_low=0.2, clip_high=0.28, dual_clip=dual)
    exact = made.log_ratio.exp().tolist()
    slow = [
        reference.policy_value_and_gradient(r, a, 0.2, 0.28, dual)
        for r, a in zip(exact, advantages, strict=True)
    ]
    assert loss.tolist() == pytest.approx([v for v, _, _ in slow], abs=1e-9)
    found = gradient(ppo, made, clip_low=0.2, clip_high=0.28, dual_clip=dual)
    assert found == pytest.approx([g for _, g, _ in slow], abs=1e-9)
    assert caught.tolist() == [c for _, _, c in slow]


def test_a_ratio_on_the_bound_keeps_its_gradient():
    made = inputs([1.2, 0.8], [1.0, -1.0])
    high, low = made.log_ratio.detach().exp().tolist()
    clip = {"clip_low": 1 - low, "clip_high": high - 1}
    assert ppo(made, **clip)[1].tolist() == [False, False]
    assert gradient(ppo, made, **clip) == pytest.approx([-1.2, 0.8])


def test_reinforce_has_the_advantage_as_its_gradient():
    assert gradient(reinforce, inputs([1.0, 3.0], [2.0, -0.5])) == [-2.0, 0.5]


def test_gspo_shares_the_geometric_mean_of_a_row_and_its_gradient():
    made = inputs([4.0, 1.0, 9.0], [1.0, 1.0, -1.0], rows=[0, 0, 1])
    wide = {"clip_low": 0.9, "clip_high": 9.0}
    assert gspo(made, **wide)[0].tolist() == pytest.approx([-2.0, -2.0, 9.0])
    # (1/L) * the sum over the row of -s A, with L = 2.
    assert gradient(gspo, made, **wide) == pytest.approx([-2.0, -2.0, 9.0])


def test_gspo_and_gspo_token_part_only_where_advantages_vary_in_a_row():
    wide = {"clip_low": 0.9, "clip_high": 9.0}
    alike, varied = (inputs([4.0, 1.0], a) for a in ([1.0, 1.0], [1.0, 0.0]))
    assert gradient(gspo, alike, **wide) == pytest.approx(gradient(gspo_token, alike, **wide))
    assert gradient(gspo, varied, **wide) == pytest.approx([-1.0, -1.0])
    assert gradient(gspo_token, varied, **wide) == pytest.approx([-2.0, 0.0])


def test_gspo_defaults_are_those_of_the_paper():
    made = inputs([1 + 5e-4, 1 - 5e-4], [1.0, -1.0], rows=[0, 1])
    for term in (gspo, gspo_token):
        loss, caught = term(made)
        assert loss.tolist() == pytest.approx([-1.0004, 0.9997], abs=1e-12)
        assert caught.tolist() == [True, True]


def test_cispo_cuts_the_weight_and_keeps_the_gradient():
    made = inputs([0.01, 2.0, 7.0], [1.0, -1.0, 1.0])
    assert gradient(cispo, made) == pytest.approx([-0.01, 2.0, -5.0])
    assert cispo(made)[1].tolist() == [False, False, True]
    assert gradient(cispo, made, clip_low=0.2, clip_high=0.28) == pytest.approx([-0.8, 1.28, -1.28])


def test_sapo_is_on_policy_reinforce_and_gates_smoothly_with_two_temperatures():
    assert gradient(sapo, inputs([1.0, 1.0], [1.0, -1.0])) == pytest.approx([-1.0, 1.0])
    made = inputs([1.5, 1.5, 1.5], [1.0, -1.0, 0.0])
    gates = [1 / (1 + math.exp(-tau * 0.5)) for tau in (1.0, 1.05)]
    assert sapo(made)[0].tolist() == pytest.approx([-4 * gates[0], 4 / 1.05 * gates[1], 0.0])
    by_hand = [4 * g * (1 - g) * 1.5 for g in gates]
    assert gradient(sapo, made) == pytest.approx([-by_hand[0], by_hand[1], 0.0])


def test_dppo_drops_by_probability_and_pulls_every_token():
    # old probability e^-2 = 0.135: ratio 3 moves it by 0.27, ratio 0.5 by -0.07.
    made = inputs([3.0, 3.0, 0.5, 0.5], [1.0, -1.0, 1.0, -1.0])
    loss, dropped = dppo(made, delta_low=0.05, k=0.1)
    pull = [0.1 * math.log(r) ** 2 for r in (3.0, 3.0, 0.5, 0.5)]
    assert dropped.tolist() == [True, False, False, True]
    assert loss.tolist() == pytest.approx([pull[0], 3.0 + pull[1], -0.5 + pull[2], pull[3]])
    slopes = [0.2 * math.log(r) for r in (3.0, 3.0, 0.5, 0.5)]
    expected = [slopes[0], 3.0 + slopes[1], -0.5 + slopes[2], slopes[3]]
    assert gradient(dppo, made, delta_low=0.05, k=0.1) == pytest.approx(expected)
    # A = 0 stands on the side of A < 0.
    assert dppo(inputs([3.0, 0.5], [0.0, 0.0]), delta_low=0.05)[1].tolist() == [False, True]


def test_the_covariance_terms_treat_selected_tokens_apart():
    chosen = torch.tensor([True, False])
    made = inputs([0.9, 1.1], [1.0, 1.0], selected=chosen)
    assert gradient(clip_cov, made) == pytest.approx([0.0, -1.1])
    assert clip_cov(made)[0].tolist() == pytest.approx(ppo(made)[0].tolist())
    far = inputs([1.0, 9.0, 1.0], [1.0, 1.0, 1.0], selected=torch.tensor([True, False, False]))
    assert clip_cov(far)[1].tolist() == [True, True, False]
    assert gradient(kl_cov, made, coef=0.5) == pytest.approx([-0.9 - 0.5, -1.1])
    assert kl_cov(made)[0].tolist() == pytest.approx([-0.9 - math.log(0.9), -1.1])


@pytest.mark.parametrize("name", POLICIES)
def test_every_term_of_no_tokens_is_empty(name):
    made = inputs([], [], selected=torch.zeros(0, dtype=torch.bool))
    loss, caught = POLICIES[name](made)
    assert loss.shape == caught.shape == (0,)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"reinforce", "cispo"}))
def test_beyond_the_limit_of_the_log_ratio_there_is_no_gradient(name):
    made = inputs([math.e**30], [1.0], selected=torch.tensor([False]))
    made = replace(made, log_ratio=made.bounded(made.log_ratio))
    is_clipped = name in ("ppo", "gspo", "gspo_token", "clip_cov")
    wide = {"clip_low": 1.0, "clip_high": 1e12} if is_clipped else {}
    assert POLICIES[name](made, **wide)[0].isfinite().all()
    assert gradient(POLICIES[name], made, **wide) == [0.0]


@given(seed=seeds, one_update=st.booleans(), fraction=st.sampled_from([2e-4, 0.1, 0.5, 1.0]))
def test_kl_cov_selects_the_largest_covariances(seed, one_update, fraction):
    batch = ragged(seed)
    batch = replace(batch, old_logprobs=None) if one_update else batch
    found = select_by_covariance(batch, "kl_cov", fraction=fraction).selected
    expected = loss_reference.selected_by_covariance(batch, fraction=fraction)
    assert torch.nonzero(found).squeeze(1).tolist() == sorted(expected)


@given(seed=seeds)
def test_kl_cov_selects_the_same_in_any_order_and_padding(seed):
    batch, padded = ragged(seed), with_padding(ragged(seed), seed)
    found = select_by_covariance(batch, "kl_cov", fraction=0.3).selected
    stretched = select_by_covariance(padded, "kl_cov", fraction=0.3).selected
    assert torch.equal(stretched[padded.loss_mask], found[batch.loss_mask])
    assert not stretched[~padded.loss_mask].any()
    order = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(seed))
    moved = select_by_covariance(batch.select_rows(order), "kl_cov", fraction=0.3).selected
    assert torch.equal(moved, found[batch.token_index(order)])


@given(seed=seeds, draw=st.integers(0, 99), fraction=st.sampled_from([2e-4, 0.1, 0.5]))
def test_clip_cov_selects_that_many_inside_the_window(seed, draw, fraction):
    batch = ragged(seed)
    found = select_by_covariance(batch, "clip_cov", seed=draw, fraction=fraction, window=(0.1, 1.0)).selected
    covariance = loss_reference.covariances(batch, batch.old_logprobs.tolist())
    inside = {t for t, value in covariance.items() if 0.1 < value < 1.0}
    picked = set(torch.nonzero(found).squeeze(1).tolist())
    assert picked <= inside
    assert len(picked) == min(len(inside), max(int(fraction * len(covariance)), 1))


def test_clip_cov_draws_uniformly_by_seed_and_place_only():
    batch = ragged(5, num_rows=200)
    torch.manual_seed(0)
    first = select_by_covariance(batch, "clip_cov", seed=1, fraction=0.02, window=(0.0, 99.0)).selected
    torch.manual_seed(1)
    again = select_by_covariance(batch, "clip_cov", seed=1, fraction=0.02, window=(0.0, 99.0)).selected
    assert torch.equal(first, again)
    covariance = loss_reference.covariances(batch, batch.old_logprobs.tolist())
    inside = [t for t, value in covariance.items() if 0.0 < value < 99.0]
    hits = torch.zeros(batch.num_tokens)
    for seed in range(400):
        hits += select_by_covariance(batch, "clip_cov", seed=seed, fraction=0.02, window=(0.0, 99.0)).selected
    chosen = hits[inside]
    share = chosen.mean().item()
    assert chosen.std().item() < 1.5 * math.sqrt(share)
    early = chosen[: chosen.numel() // 2].mean().item()
    assert early == pytest.approx(share, rel=0.1)


def test_clip_cov_keeps_its_choice_when_a_token_it_left_out_is_not_trained():
    batch, every = ragged(5, num_rows=40), {"seed": 1, "fraction": 0.105, "window": (-math.inf, math.inf)}
    chosen = select_by_covariance(batch, "clip_cov", **every).selected
    left_out = torch.nonzero(batch.loss_mask & ~chosen).squeeze(1)[0]
    fewer = replace(batch, loss_weights=batch.loss_weights.index_fill(0, left_out[None], 0.0))
    again = select_by_covariance(fewer, "clip_cov", **every).selected
    assert int(0.105 * batch.loss_mask.sum()) == int(0.105 * (batch.loss_mask.sum() - 1)) == chosen.sum()
    assert torch.equal(again, chosen)


@given(seed=seeds)
def test_trained_tokens_have_their_mask_and_a_weight(seed):
    batch = ragged(seed)
    weights = torch.where(batch.segment_ids % 3 == 0, 0.0, batch.loss_weights)
    mask, rows = batch.loss_mask.tolist(), batch.segment_ids.tolist()
    found = trained_tokens(
        replace(batch, loss_weights=torch.where(batch.loss_mask, weights, garbage(weights)))
    )
    assert found.tolist() == [t for t, m in enumerate(mask) if m and rows[t] % 3]
    assert trained_tokens(replace(batch, loss_weights=None)).tolist() == [t for t, m in enumerate(mask) if m]


@pytest.mark.parametrize("policy", ["clip_cov", "kl_cov"])
def test_selection_does_not_see_what_is_masked(policy):
    batch = ragged(5)
    dirty = replace(
        batch,
        advantages=torch.where(batch.loss_mask, batch.advantages, garbage(batch.advantages)),
        old_logprobs=torch.where(batch.loss_mask, batch.old_logprobs, garbage(batch.advantages)),
    )
    clean, found = (select_by_covariance(b, policy, fraction=0.3, window=(0.0, 9.0)) for b in (batch, dirty))
    assert torch.equal(clean.selected, found.selected)
    nothing = replace(dirty, loss_mask=torch.zeros_like(batch.loss_mask))
    assert not select_by_covariance(nothing, policy).selected.any()
