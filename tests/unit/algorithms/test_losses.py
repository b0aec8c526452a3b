import math
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.algorithms.correction import CORRECTIONS, with_ess
from rlhf.algorithms.losses import PolicyLoss
from rlhf.algorithms.policy_terms import PolicyInputs, select_by_covariance
from rlhf.batch import Batch
from rlhf.data.packing import split_microbatches
from rlhf.errors import ConfigError
from rlhf.telemetry.metrics import declared
from tests.unit.algorithms import loss_reference, reference
from tests.unit.algorithms.ragged import (
    current_logprobs,
    entropies,
    garbage,
    ragged,
    with_garbage,
    with_padding,
)

seeds = st.integers(0, 10_000)
EVERYTHING = PolicyLoss(
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=1.5,
    kl_coef=0.3,
    kl_estimator="k3_unbiased",
    entropy_coef=0.05,
    correction="icepop",
    opsm_delta=0.05,
    positive_nll_coef=0.1,
)
WIDE = {"clip_low": 0.3, "clip_high": 0.4}
SETTINGS = [
    PolicyLoss(),
    PolicyLoss(correction="none", clip_high=0.28),
    PolicyLoss(kl_coef=0.5, kl_estimator="k2", clip_low=10.0, clip_high=10.0),
    PolicyLoss(kl_coef=0.5, kl_estimator="k3_st", correction="none", kl_ratio_from="rollout"),
    PolicyLoss(kl_coef=0.5, kl_estimator="k3_unbiased", kl_ratio_from="rollout", log_ratio_limit=None),
    PolicyLoss(entropy_coef=-0.1, dual_clip=1.2),
    PolicyLoss(positive_nll_coef=0.1, opsm_delta=0.0),
    PolicyLoss(policy="reinforce"),
    PolicyLoss(policy="gspo"),
    PolicyLoss(policy="gspo", dual_clip=1.1, correction="token_is", kl_coef=0.2, **WIDE),
    PolicyLoss(policy="gspo_token", **WIDE),
    PolicyLoss(policy="cispo"),
    PolicyLoss(policy="cispo", **WIDE),
    PolicyLoss(policy="sapo"),
    PolicyLoss(policy="sapo", policy_kwargs=(("tau_positive", 2.0), ("tau_negative", 3.0))),
    PolicyLoss(policy="dppo", correction="none", old_from="rollout"),
    PolicyLoss(policy="dppo", policy_kwargs=(("delta_low", 0.05), ("delta_high", 0.02), ("k", 0.3))),
    PolicyLoss(policy="clip_cov", policy_kwargs=(("fraction", 0.3), ("window", (0.05, 9.0)))),
    PolicyLoss(policy="kl_cov", policy_kwargs=(("fraction", 0.3), ("coef", 0.7))),
    PolicyLoss(correction="none", old_from="rollout", opsm_delta=0.1),
    *(PolicyLoss(correction=name) for name in CORRECTIONS),
    PolicyLoss(correction="token_tis", correction_floor=0.9, correction_cap=1.1),
    PolicyLoss(correction="token_mis", correction_cap=1.05),
    PolicyLoss(correction="sequence_tis", correction_cap=1.1),
    PolicyLoss(correction="sequence_mis", correction_cap=1.1),
    PolicyLoss(correction="geometric_mask", correction_floor=0.85, correction_cap=1.1),
    PolicyLoss(correction="geometric_mask_tis", correction_floor=0.85, correction_cap=1.1, opsm_delta=0.1),
    EVERYTHING,
]

# Bounds that ordinary log-ratios cross on both sides.
TIGHT = [
    *(PolicyLoss(policy=name, log_ratio_limit=0.25) for name in ("ppo", "cispo", "sapo", "dppo")),
    *(PolicyLoss(policy=name, log_ratio_limit=0.08, **WIDE) for name in ("gspo", "gspo_token")),
    PolicyLoss(policy="kl_cov", policy_kwargs=(("fraction", 0.5),), log_ratio_limit=0.25),
    PolicyLoss(kl_coef=0.5, kl_estimator="k3_unbiased", log_ratio_limit=0.25),
    *(
        PolicyLoss(correction=name, correction_floor=0.8, correction_cap=1.2, log_ratio_limit=0.15)
        for name in CORRECTIONS
    ),
]


def prepared(loss: PolicyLoss, batch: Batch) -> Batch:
    return loss.prepare(batch, seed=3)


def run(loss: PolicyLoss, logprobs: torch.Tensor, entropy: torch.Tensor, batch: Batch):
    """Loss, gradients and sums of one micro-batch."""
    logprobs, entropy = logprobs.detach().requires_grad_(), entropy.detach().requires_grad_()
    output = loss(logprobs, entropy, batch)
    by_logprob, by_entropy = torch.autograd.grad(output.loss, [logprobs, entropy], materialize_grads=True)
    return output.loss.detach(), by_logprob, by_entropy, output.sums


@pytest.mark.parametrize("loss", SETTINGS + TIGHT)
@settings(max_examples=12)
@given(seed=seeds, one_update=st.booleans())
def test_loss_and_gradients_agree_with_the_slow_reference(loss, seed, one_update):
    batch = ragged(seed)
    batch = prepared(loss, replace(batch, old_logprobs=None) if one_update else batch)
    logprobs, entropy = current_logprobs(batch, seed), entropies(batch, seed)
    value, by_logprob, by_entropy, _ = run(loss, logprobs, entropy, batch)
    at, spread = logprobs.tolist(), entropy.tolist()

    def slow(live):
        return loss_reference.loss_value(loss, live, spread, batch, at)

    def of_entropy(live):
        return loss_reference.loss_value(loss, at, live, batch, at)

    assert value.item() == pytest.approx(complex(slow(at)).real, abs=1e-9, rel=1e-9)
    slow_logprob, slow_entropy = (
        loss_reference.gradient(slow, at),
        loss_reference.gradient(of_entropy, spread),
    )
    assert by_logprob.tolist() == pytest.approx(slow_logprob, abs=1e-9, rel=1e-9)
    assert by_entropy.tolist() == pytest.approx(slow_entropy, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("loss", SETTINGS)
@settings(max_examples=20)
@given(seed=seeds)
def test_garbage_under_the_mask_changes_nothing(loss, seed):
    batch, dirty = prepared(loss, ragged(seed)), prepared(loss, with_garbage(ragged(seed)))
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
@settings(max_examples=10)
@given(seed=seeds)
def test_untrained_tokens_strewn_into_the_rows_change_nothing(loss, seed):
    batch = prepared(loss, ragged(seed))
    # The current values ride along in fields that padding fills with garbage.
    carrier = replace(batch, values=current_logprobs(batch, seed), returns=entropies(batch, seed))
    padded = with_padding(carrier, seed)
    clean = run(loss, carrier.values, carrier.returns, batch)
    found = run(loss, padded.values, padded.returns, padded)
    assert found[0].item() == pytest.approx(clean[0].item(), abs=1e-12)
    for expected, gradient in zip(clean[1:3], found[1:3], strict=True):
        torch.testing.assert_close(gradient[padded.loss_mask], expected[batch.loss_mask], rtol=1e-12, atol=0)
        assert gradient[~padded.loss_mask].count_nonzero() == 0


@pytest.mark.parametrize("loss", SETTINGS)
def test_an_all_masked_batch_gives_zero_loss_and_zero_gradient(loss):
    batch = with_garbage(ragged(5))
    batch = prepared(loss, replace(batch, loss_mask=torch.zeros_like(batch.loss_mask)))
    nothing = torch.full((batch.num_tokens,), float("nan"), dtype=torch.float64)
    value, by_logprob, by_entropy, sums = run(loss, nothing, nothing, batch)
    assert value == 0
    assert by_logprob.count_nonzero() == by_entropy.count_nonzero() == 0
    assert all(torch.isfinite(n) and d == 0 for n, d in sums.values())


def test_tokens_of_weight_zero_are_not_trained_and_not_read():
    batch = ragged(5)
    out = batch.segment_ids == 2
    batch = prepared(EVERYTHING, replace(batch, loss_weights=torch.where(out, 0.0, batch.loss_weights)))
    logprobs, entropy = current_logprobs(batch, 5), entropies(batch, 5)
    poisoned = torch.where(out, float("nan"), logprobs.detach())
    value, by_logprob, _, sums = run(EVERYTHING, poisoned, entropy, batch)
    assert torch.isfinite(value)
    assert by_logprob[out].count_nonzero() == 0
    assert sums["update/masked_share"][0] == (out & batch.loss_mask).sum()


@pytest.mark.parametrize("loss", SETTINGS)
@settings(max_examples=8)
@given(seed=seeds, ranks=st.integers(1, 3), budget=st.integers(7, 40))
def test_any_split_over_ranks_and_microbatches_sums_to_the_whole(loss, seed, ranks, budget):
    whole = prepared(loss, ragged(seed))
    logprobs, entropy = current_logprobs(whole, seed), entropies(whole, seed)
    value, gradient, _, sums = run(loss, logprobs, entropy, whole)
    # The current values ride along in fields that select_rows carries.
    carrier = replace(whole, tokens=torch.arange(whole.num_tokens))
    parts = [m for share in split_microbatches(carrier, ranks=ranks, budget_tokens=budget) for m in share]
    total, gathered, added = 0.0, torch.zeros_like(gradient), []
    for part in parts:
        part_value, part_gradient, _, part_sums = run(loss, logprobs[part.tokens], entropy[part.tokens], part)
        total += part_value.item()
        gathered[part.tokens] = part_gradient
        added.append(part_sums)
    assert total == pytest.approx(value.item(), abs=1e-12)
    torch.testing.assert_close(gathered, gradient, rtol=1e-12, atol=0)
    for name, (numerator, denominator) in sums.items():
        combine = max if name.endswith("_max") else sum
        assert combine(s[name][0].item() for s in added) == pytest.approx(numerator.item(), abs=1e-9)
        assert sum(s[name][1].item() for s in added) == pytest.approx(denominator.item(), abs=1e-9)


@pytest.mark.parametrize("loss", SETTINGS)
@settings(max_examples=10)
@given(seed=seeds)
def test_loss_is_unchanged_by_the_order_of_rows(loss, seed):
    batch = prepared(loss, ragged(seed))
    logprobs, entropy = current_logprobs(batch, seed), entropies(batch, seed)
    order = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(seed))
    index = batch.token_index(order)
    value, gradient, _, _ = run(loss, logprobs, entropy, batch)
    moved, moved_gradient, _, _ = run(loss, logprobs[index], entropy[index], batch.select_rows(order))
    assert moved.item() == pytest.approx(value.item(), abs=1e-12)
    torch.testing.assert_close(moved_gradient, gradient[index])


def test_log_ratios_are_bounded_before_exp():
    batch = replace(ragged(5), old_logprobs=torch.full((ragged(5).num_tokens,), -900.0, dtype=torch.float64))
    value, by_logprob, _, sums = run(
        PolicyLoss(correction="none"), current_logprobs(batch, 5), entropies(batch, 5), batch
    )
    assert torch.isfinite(value)
    assert by_logprob.count_nonzero() == 0
    assert sums["update/ratio_max"][0].item() == pytest.approx(math.exp(20))


def test_terms_with_coefficient_zero_are_measured_but_have_no_gradient():
    batch = ragged(5)
    loss = PolicyLoss()
    poisoned = torch.full((batch.num_tokens,), float("inf"), dtype=torch.float64)
    far = replace(batch, ref_logprobs=-poisoned)
    value, by_logprob, by_entropy, sums = run(loss, current_logprobs(batch, 5), poisoned, far)
    assert torch.isfinite(value)
    assert by_logprob.isfinite().all()
    assert by_entropy.count_nonzero() == 0
    assert sums["update/entropy"][0] == float("inf")
    assert not sums["update/kl"][0].isfinite()
    assert run(loss, current_logprobs(batch, 5), poisoned, batch)[3]["update/kl"][0] > 0


def test_a_missing_ingredient_is_named():
    batch = ragged(5)
    logprobs = current_logprobs(batch, 5)
    with pytest.raises(ValueError, match="ref_logprobs"):
        PolicyLoss(kl_coef=0.1)(logprobs, None, replace(batch, ref_logprobs=None))
    with pytest.raises(ValueError, match="no entropy"):
        PolicyLoss(entropy_coef=0.1)(logprobs, None, batch)
    with pytest.raises(ValueError, match="loss_weights"):
        PolicyLoss()(logprobs, None, replace(batch, loss_weights=None))


def test_sums_are_declared_metrics_of_one_dtype_without_gradient():
    for loss in SETTINGS:
        batch = prepared(loss, ragged(5))
        sums = loss(current_logprobs(batch, 5), entropies(batch, 5), batch).sums
        assert all(not x.requires_grad and x.dtype == torch.float64 for pair in sums.values() for x in pair)
        for name in with_ess({name: (n / d).item() for name, (n, d) in sums.items()}):
            declared(name)


def test_sums_of_the_ratio_are_those_of_the_formulas():
    batch = prepared(EVERYTHING, ragged(5))
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


@settings(max_examples=12)
@given(seed=seeds)
def test_sums_of_kl_entropy_and_masks_are_plain_sums_over_trained_tokens(seed):
    batch = prepared(EVERYTHING, ragged(seed))
    logprobs, entropy = current_logprobs(batch, seed), entropies(batch, seed)
    sums = EVERYTHING(logprobs, entropy, batch).sums
    trained = torch.nonzero(batch.loss_mask & (batch.loss_weights != 0)).squeeze(1).tolist()
    moved = [(logprobs[t] - batch.old_logprobs[t]).item() for t in trained]
    gaps = [(logprobs[t] - batch.ref_logprobs[t]).item() for t in trained]
    kls = [loss_reference.kl(x, x, math.exp(y), "k3_unbiased").real for x, y in zip(gaps, moved, strict=True)]
    assert sums["update/kl"][0].item() == pytest.approx(sum(kls), abs=1e-9)
    assert sums["update/entropy"][0].item() == pytest.approx(sum(entropy[t].item() for t in trained))
    assert sums["update/kl"][1] == sums["update/entropy"][1] == len(trained)
    assert sums["update/masked_share"][1] == batch.loss_mask.sum()


@pytest.mark.parametrize("policy", ["clip_cov", "kl_cov"])
def test_prepare_selects_by_the_settings_and_the_seed_of_the_loss(policy):
    batch, chosen = ragged(5, num_rows=60), {"fraction": 0.2, "window": (0.0, 9.0)}
    loss = PolicyLoss(policy=policy, policy_kwargs=tuple(chosen.items()))
    for seed in (1, 2):
        expected = select_by_covariance(batch, policy, seed=seed, **chosen).selected
        assert torch.equal(loss.prepare(batch, seed=seed).selected, expected)
        assert expected.sum() == int(0.2 * batch.loss_mask.sum())


@pytest.mark.parametrize("loss", SETTINGS)
def test_the_loss_pickles(loss):
    assert pickle.loads(pickle.dumps(loss)) == loss


def squared(inputs: PolicyInputs, *, scale: float = 1.0):
    """A term of a user's own."""
    return scale * inputs.log_ratio.square(), inputs.log_ratio > 9


def one_number(inputs: PolicyInputs):
    return (-inputs.advantages * inputs.new).sum(), torch.zeros_like(inputs.new, dtype=torch.bool)


def loss_alone(inputs: PolicyInputs):
    return -inputs.advantages * inputs.new


@pytest.mark.parametrize(
    ("term", "found"), [(one_number, r"gave \[\(\), \(\d+,\)\]"), (loss_alone, "gave a Tensor")]
)
def test_a_term_that_gives_something_else_is_named(term, found):
    loss = PolicyLoss(policy=term)
    batch = prepared(loss, ragged(1))
    with pytest.raises(ConfigError, match=rf"algorithm.policy {found}, expected two tensors of \d+ numbers"):
        loss(current_logprobs(batch, 1), None, batch)


def test_a_term_of_a_users_own_is_a_policy():
    batch = ragged(5)
    loss = PolicyLoss(policy=squared, policy_kwargs=(("scale", 2.0),), correction="none")
    logprobs = current_logprobs(batch, 5)
    value, gradient, _, _ = run(loss, logprobs, entropies(batch, 5), batch)
    gap = torch.where(batch.loss_mask, logprobs.detach() - batch.old_logprobs, 0)
    torch.testing.assert_close(value, (batch.loss_weights * 2 * gap.square()).sum())
    torch.testing.assert_close(gradient, batch.loss_weights * 4 * gap)
    assert pickle.loads(pickle.dumps(loss)) == loss


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"policy": "pp0"}, "policy: found 'pp0', expected one of ppo"),
        ({"policy": "sapo", "clip_low": 0.2}, "'sapo' has no clip_low; it takes tau_negative, tau_positive"),
        ({"policy": "reinforce", "dual_clip": 3.0}, "has no dual_clip; it takes no settings"),
        ({"policy": "ppo", "policy_kwargs": (("fraction", 0.1),)}, "has no fraction"),
        ({"old_from": "rollout"}, "count the gap twice"),
    ],
)
def test_settings_without_a_meaning_are_refused(given_, message):
    with pytest.raises(ValueError, match=message):
        PolicyLoss(**given_)


def test_what_must_be_prepared_on_the_whole_batch_is_missed_by_name():
    batch = ragged(5)
    logprobs = current_logprobs(batch, 5)
    with pytest.raises(ValueError, match="select_by_covariance"):
        PolicyLoss(policy="kl_cov")(logprobs, None, batch)
    with pytest.raises(ValueError, match="nll_weights"):
        PolicyLoss(positive_nll_coef=0.1)(logprobs, None, batch)


def test_a_bypassed_old_policy_equals_the_engines_as_old():
    batch = ragged(5)
    logprobs, entropy = current_logprobs(batch, 5), entropies(batch, 5)
    bypass = PolicyLoss(correction="none", old_from="rollout")
    plain = PolicyLoss(correction="none")
    found = run(bypass, logprobs, entropy, batch)
    expected = run(plain, logprobs, entropy, replace(batch, old_logprobs=batch.rollout_logprobs))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[3]["mismatch/kl"][0] > 0


def test_an_off_policy_mask_leaves_kl_entropy_and_denominators_alone():
    batch = replace(ragged(5), advantages=-torch.ones(ragged(5).num_tokens, dtype=torch.float64))
    logprobs, entropy = current_logprobs(batch, 5), entropies(batch, 5)
    masked = PolicyLoss(opsm_delta=-50.0, kl_coef=0.5, entropy_coef=0.1)
    value, gradient, _, sums = run(masked, logprobs, entropy, batch)
    silent = replace(batch, advantages=torch.zeros_like(batch.advantages))
    expected = run(replace(masked, opsm_delta=None), logprobs, entropy, silent)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient, expected[1])
    top, count = sums["mismatch/masked_share/opsm"]
    assert top == count == sums["mismatch/masked_share"][0]
    assert sums["update/loss"][1] == batch.loss_weights.sum()
