import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.correction import with_ess
from rlhf.algorithms.losses import ClippedPolicyLoss, clipped_policy_terms
from rlhf.batch import Batch
from rlhf.data.packing import split_microbatches
from rlhf.telemetry.metrics import declared
from tests.unit.algorithms import reference
from tests.unit.algorithms.ragged import current_logprobs, entropies, garbage, ragged, with_garbage

seeds = st.integers(0, 10_000)
EVERYTHING = ClippedPolicyLoss(
    clip_low=0.2, clip_high=0.28, dual_clip=1.5, kl_coef=0.3, kl_estimator="k3_unbiased", entropy_coef=0.05
)
SETTINGS = [
    ClippedPolicyLoss(),
    ClippedPolicyLoss(correction="none", clip_high=0.28),
    ClippedPolicyLoss(correction_cap=1.1, kl_coef=0.5),
    ClippedPolicyLoss(kl_coef=0.5, kl_estimator="k2", clip_low=10.0, clip_high=10.0),
    ClippedPolicyLoss(kl_coef=0.5, kl_estimator="k3_st", correction="none"),
    ClippedPolicyLoss(entropy_coef=-0.1, dual_clip=1.2),
    EVERYTHING,
]


def run(loss: ClippedPolicyLoss, logprobs: torch.Tensor, entropy: torch.Tensor, batch: Batch):
    """Loss, gradients and sums of one micro-batch."""
    logprobs, entropy = logprobs.detach().requires_grad_(), entropy.detach().requires_grad_()
    output = loss(logprobs, entropy, batch)
    by_logprob, by_entropy = torch.autograd.grad(output.loss, [logprobs, entropy], materialize_grads=True)
    return output.loss.detach(), by_logprob, by_entropy, output.sums


@pytest.mark.parametrize("loss", SETTINGS)
@given(seed=seeds, one_update=st.booleans())
def test_loss_and_gradients_agree_with_the_slow_reference(loss, seed, one_update):
    batch = ragged(seed)
    batch = replace(batch, old_logprobs=None) if one_update else batch
    logprobs, entropy = current_logprobs(batch, seed), entropies(batch, seed)
    value, by_logprob, by_entropy, _ = run(loss, logprobs, entropy, batch)
    slow = reference.loss_and_gradients(loss, logprobs.tolist(), entropy.tolist(), batch)
    assert value.item() == pytest.approx(slow[0], abs=1e-9, rel=1e-9)
    torch.testing.assert_close(by_logprob, torch.tensor(slow[1], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(by_entropy, torch.tensor(slow[2], dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", SETTINGS)
@given(seed=seeds)
def test_garbage_under_the_mask_changes_nothing(loss, seed):
    batch, dirty = ragged(seed), with_garbage(ragged(seed))
    logprobs, entropy = current_logprobs(batch, seed), entropies(batch, seed)
    dirty_logprobs = torch.where(batch.loss_mask, logprobs, garbage(logprobs))
    dirty_entropy = torch.where(batch.loss_mask, entropy, garbage(entropy))
    for clean, found in zip(
        run(loss, logprobs, entropy, batch)[:3],
        run(loss, dirty_logprobs, dirty_entropy, dirty)[:3],
        strict=True,
    ):
        assert torch.equal(clean, found)


@pytest.mark.parametrize("loss", SETTINGS)
def test_an_all_masked_batch_gives_zero_loss_and_zero_gradient(loss):
    batch = with_garbage(ragged(5))
    batch = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    nothing = torch.full((batch.num_tokens,), float("nan"), dtype=torch.float64)
    value, by_logprob, by_entropy, sums = run(loss, nothing, nothing, batch)
    assert value == 0
    assert by_logprob.count_nonzero() == by_entropy.count_nonzero() == 0
    assert all(torch.isfinite(n) and d == 0 for n, d in sums.values())


def test_tokens_of_weight_zero_are_not_trained_and_not_read():
    batch = ragged(5)
    out = batch.segment_ids == 2
    batch = replace(batch, loss_weights=torch.where(out, 0.0, batch.loss_weights))
    logprobs, entropy = current_logprobs(batch, 5), entropies(batch, 5)
    poisoned = torch.where(out, float("nan"), logprobs.detach())
    value, by_logprob, _, sums = run(EVERYTHING, poisoned, entropy, batch)
    assert torch.isfinite(value)
    assert by_logprob[out].count_nonzero() == 0
    assert sums["update/masked_share"][0] == (out & batch.loss_mask).sum()


@given(seed=seeds, ranks=st.integers(1, 3), budget=st.integers(7, 40))
def test_any_split_over_ranks_and_microbatches_sums_to_the_whole(seed, ranks, budget):
    whole = ragged(seed)
    logprobs, entropy = current_logprobs(whole, seed), entropies(whole, seed)
    value, gradient, _, sums = run(EVERYTHING, logprobs, entropy, whole)
    # The current values ride along in fields that select_rows carries.
    carrier = replace(whole, tokens=torch.arange(whole.num_tokens))
    parts = [m for share in split_microbatches(carrier, ranks=ranks, budget_tokens=budget) for m in share]
    total, gathered, added = 0.0, torch.zeros_like(gradient), []
    for part in parts:
        part_value, part_gradient, _, part_sums = run(
            EVERYTHING, logprobs[part.tokens], entropy[part.tokens], part
        )
        total += part_value.item()
        gathered[part.tokens] = part_gradient
        added.append(part_sums)
    assert total == pytest.approx(value.item(), abs=1e-12)
    torch.testing.assert_close(gathered, gradient, rtol=1e-12, atol=0)
    for name, (numerator, denominator) in sums.items():
        combine = max if name.endswith("_max") else sum
        assert combine(s[name][0].item() for s in added) == pytest.approx(numerator.item(), abs=1e-9)
        assert sum(s[name][1].item() for s in added) == pytest.approx(denominator.item(), abs=1e-9)


@given(seed=seeds)
def test_loss_is_unchanged_by_the_order_of_rows(seed):
    batch = ragged(seed)
    logprobs, entropy = current_logprobs(batch, seed), entropies(batch, seed)
    order = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(seed))
    index = batch.token_index(order)
    value, gradient, _, _ = run(EVERYTHING, logprobs, entropy, batch)
    moved, moved_gradient, _, _ = run(EVERYTHING, logprobs[index], entropy[index], batch.select_rows(order))
    assert moved.item() == pytest.approx(value.item(), abs=1e-12)
    torch.testing.assert_close(moved_gradient, gradient[index])


def test_a_ratio_on_the_bound_keeps_its_gradient():
    log_ratio = torch.tensor([1.2, 0.8], dtype=torch.float64).log().requires_grad_()
    low, high = 1 - log_ratio.detach().exp()[1].item(), log_ratio.detach().exp()[0].item() - 1
    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
    loss, clipped = clipped_policy_terms(log_ratio, advantages, clip=(low, high))
    loss.sum().backward()
    assert clipped.tolist() == [False, False]
    assert (log_ratio.grad.abs() > 0.4).all()


def test_log_ratios_are_bounded_before_exp():
    batch = replace(ragged(5), old_logprobs=torch.full((ragged(5).num_tokens,), -900.0, dtype=torch.float64))
    value, by_logprob, _, _ = run(
        ClippedPolicyLoss(correction="none"), current_logprobs(batch, 5), entropies(batch, 5), batch
    )
    assert torch.isfinite(value)
    assert by_logprob.count_nonzero() == 0


def test_terms_with_coefficient_zero_are_measured_but_have_no_gradient():
    batch = ragged(5)
    loss = ClippedPolicyLoss()
    poisoned = torch.full((batch.num_tokens,), float("inf"), dtype=torch.float64)
    value, _, by_entropy, sums = run(loss, current_logprobs(batch, 5), poisoned, batch)
    assert torch.isfinite(value)
    assert by_entropy.count_nonzero() == 0
    assert sums["update/entropy"][0] == float("inf")
    assert sums["update/kl"][0] > 0


def test_a_missing_ingredient_is_named():
    batch = ragged(5)
    logprobs = current_logprobs(batch, 5)
    with pytest.raises(ValueError, match="ref_logprobs"):
        ClippedPolicyLoss(kl_coef=0.1)(logprobs, None, replace(batch, ref_logprobs=None))
    with pytest.raises(ValueError, match="no entropy"):
        ClippedPolicyLoss(entropy_coef=0.1)(logprobs, None, batch)
    with pytest.raises(ValueError, match="loss_weights"):
        ClippedPolicyLoss()(logprobs, None, replace(batch, loss_weights=None))


def test_sums_are_declared_metrics_of_one_dtype_without_gradient():
    batch = ragged(5)
    for loss in SETTINGS:
        sums = loss(current_logprobs(batch, 5), entropies(batch, 5), batch).sums
        assert all(not x.requires_grad and x.dtype == torch.float64 for pair in sums.values() for x in pair)
        for name in with_ess({name: (n / d).item() for name, (n, d) in sums.items()}):
            declared(name)


def test_sums_of_the_ratio_are_those_of_the_formulas():
    batch = ragged(5)
    logprobs = current_logprobs(batch, 5)
    sums = EVERYTHING(logprobs, entropies(batch, 5), batch).sums
    log_ratio = (logprobs.detach() - batch.old_logprobs)[batch.loss_mask]
    ratios = log_ratio.exp().tolist()
    advantages = batch.advantages[batch.loss_mask].tolist()
    clipped = [
        reference.policy_value_and_gradient(r, a, 0.2, 0.28, 1.5)[2]
        for r, a in zip(ratios, advantages, strict=True)
    ]
    assert any(clipped)
    assert sums["update/clip_share"] == (sum(clipped), len(ratios))
    assert sums["update/ratio_mean"][0].item() == pytest.approx(sum(ratios))
    assert sums["update/ratio_max"][0].item() == pytest.approx(max(ratios))
    assert sums["update/kl_old"][0].item() == pytest.approx(
        sum(r - 1 - x for r, x in zip(ratios, log_ratio.tolist(), strict=True))
    )


def test_the_loss_pickles():
    assert pickle.loads(pickle.dumps(EVERYTHING)) == EVERYTHING
