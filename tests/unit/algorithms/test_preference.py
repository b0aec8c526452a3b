import decimal
import math
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.algorithms.pairs import (
    Pairs,
    Rows,
    interleaved,
    kto_baseline,
    labelled,
    pair_weights,
    sequence_logprobs,
)
from rlhf.algorithms.preference import (
    PREFERENCE_LOSSES,
    PreferenceSettings,
    kto_balance,
    log1mexp,
    preference_losses,
)
from tests.unit.algorithms import loss_reference
from tests.unit.algorithms import preference_reference as reference
from tests.unit.algorithms.ragged import current_logprobs, garbage, ragged
from tests.unit.algorithms.random_pairs import f64, leaves, make, random_pairs, soiled

seeds = st.integers(0, 10_000)
NAN, INF = float("nan"), float("inf")
CASES = [
    *({"loss": name} for name in PREFERENCE_LOSSES),
    {"loss": "dpo", "beta": 0.7, "nll_coef": 0.3},
    {"loss": "cdpo", "beta": 0.7, "label_smoothing": 0.3},
    {"loss": "cdpo", "label_smoothing": 0.0},
    {"loss": "robust", "beta": 0.7, "label_smoothing": 0.3},
    {"loss": "hinge", "beta": 0.7, "nll_coef": 0.3},
    {"loss": "ipo", "beta": 0.7},
    {"loss": "ipo_avg", "beta": 0.7, "nll_coef": 0.3},
    {"loss": "simpo", "beta": 2.5, "gamma": 1.6},
    {"loss": "orpo", "odds_weight": 1.3},
    {"loss": "kto", "beta": 0.7, "desirable_weight": 1.3, "undesirable_weight": 0.8, "nll_coef": 0.3},
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def run(pairs: Pairs, case: dict, weights: torch.Tensor | None = None):
    """Losses and the gradient of their weighted sum, (chosen, rejected)."""
    output = preference_losses(pairs, PreferenceSettings(**case))
    total = output.losses.sum() if weights is None else (weights * output.losses).sum()
    gradients = torch.autograd.grad(total, (pairs.chosen.sums, pairs.rejected.sums), materialize_grads=True)
    return output, torch.stack(gradients)


def assert_agrees(pairs: Pairs, case: dict) -> None:
    output, gradients = run(pairs, case)
    numbers = {**case, "z": pairs.baseline.item()}
    for i in range(len(output.losses)):
        counts = (pairs.chosen.counts[i].item(), pairs.rejected.counts[i].item())
        refs = (pairs.chosen.ref_sums[i].item(), pairs.rejected.ref_sums[i].item())

        def slow(live, counts=counts, refs=refs):
            return complex(reference.example(case["loss"], live, counts, refs, numbers))

        at = (pairs.chosen.sums[i].item(), pairs.rejected.sums[i].item())
        assert output.losses[i].item() == pytest.approx(slow(at).real, abs=1e-9, rel=1e-9)
        expected = loss_reference.gradient(slow, at)
        assert gradients[:, i].tolist() == pytest.approx(expected, abs=1e-9, rel=1e-9)
        for side, found in enumerate((output.chosen_rewards[i], output.rejected_rewards[i])):
            if counts[side] and (counts[1 - side] or case["loss"] == "kto"):
                reward = reference.implicit_reward(case["loss"], at[side], counts[side], refs[side], numbers)
                assert found.item() == pytest.approx(reward, abs=1e-9, rel=1e-9)


@each_case
@settings(max_examples=25)
@given(seed=seeds, scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_losses_and_gradients_agree_with_the_slow_reference(case, seed, scale):
    assert_agrees(random_pairs(seed, scale=scale), case)


@each_case
@pytest.mark.parametrize(
    "pairs",
    [
        lambda: make([-2.0], [-9.0], refs=([-2.5], [-8.0])),
        lambda: make([-2.0, -3.0], [-2.0, -3.0], counts=([2, 4], [2, 4]), refs=([-2.0, -3.0], [-2.0, -3.0])),
        lambda: make([0.0, 0.0, -4.0], [0.0, -3.0, 0.0], counts=([0, 0, 2], [0, 2, 0])),
        lambda: make([], []),
        lambda: make([-1e4, -1.0], [-1.0, -1e4]),
        lambda: make([-1e-12, -5.0, -1e-12, 0.0], [-5.0, -1e-12, -3e-12, -1.0]),
    ],
    ids=["single", "ties", "empty_rows", "no_pairs", "far", "near_certain"],
)
def test_losses_agree_with_the_slow_reference_on_edge_cases(case, pairs):
    assert_agrees(pairs(), case)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_far_pairs_are_finite(case, dtype):
    sides = [
        Rows(
            sums=torch.tensor(sums, dtype=dtype, requires_grad=True),
            counts=torch.tensor([1, 1, 1]),
            ref_sums=torch.zeros(3, dtype=dtype),
        )
        for sums in ([-1e4, 0.0, 0.0], [0.0, -1e4, 0.0])
    ]
    pairs = Pairs(chosen=sides[0], rejected=sides[1], baseline=torch.zeros((), dtype=dtype))
    output, gradients = run(pairs, case)
    assert output.losses.isfinite().all()
    assert gradients.isfinite().all()
    assert output.losses.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dpo_at_the_start_is_exactly_log_two_and_scores_no_pair(dtype):
    sums = torch.tensor([-3.7, -11.1, -0.3], dtype=dtype)
    rows = Rows(sums=sums, counts=torch.tensor([3, 4, 1]), ref_sums=sums.clone())
    pairs = Pairs(chosen=rows, rejected=rows.select(torch.tensor([2, 0, 1])))
    output = preference_losses(pairs, PreferenceSettings())
    assert torch.equal(output.losses, torch.full((3,), math.log(2), dtype=dtype))
    assert [x.item() for x in output.sums()["preference/accuracy"]] == [0, 3]


def test_dpo_metrics_of_a_hand_worked_batch():
    pairs = make([-2.0, -6.0, -5.0, 0.0], [-5.0, -4.0, -5.0, -1.0], counts=([2, 2, 2, 0], [3, 3, 3, 3]))
    sums = preference_losses(pairs, PreferenceSettings(beta=0.5)).sums()
    values = {name: (top.item(), bottom.item()) for name, (top, bottom) in sums.items()}
    assert values == {
        "preference/accuracy": (1, 3),
        "preference/margin": (0.5, 3),
        "preference/chosen_reward": (-6.5, 3),
        "preference/rejected_reward": (-7.0, 3),
    }
    assert not any(top.requires_grad for top, _ in sums.values())


def test_losses_of_one_hand_worked_pair():
    def value(name, **numbers):
        pairs = make([-2.0], [-6.0], counts=([2], [3]), refs=([-3.0], [-5.0]), z=0.5)
        return preference_losses(pairs, PreferenceSettings(loss=name, **numbers)).losses.item()

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    p, q = math.exp(-1), math.exp(-2)
    odds = math.log(p / (1 - p)) - math.log(q / (1 - q))
    assert value("dpo") == pytest.approx(-math.log(sigmoid(0.2)), abs=1e-12)
    assert value("dpo", nll_coef=0.5) == pytest.approx(-math.log(sigmoid(0.2)) + 0.5, abs=1e-12)
    assert value("hinge") == pytest.approx(0.8, abs=1e-12)
    assert value("ipo") == pytest.approx(9.0, abs=1e-12)
    assert value("ipo_avg") == pytest.approx((0.5 + 1 / 3 - 5) ** 2, abs=1e-12)
    assert value("simpo") == pytest.approx(-math.log(sigmoid(2 * (-1 + 2) - 1)), abs=1e-12)
    assert value("orpo") == pytest.approx(1 - 0.1 * math.log(sigmoid(odds)), abs=1e-12)
    assert value("kto") == pytest.approx(2 - sigmoid(0.1 * 0.5) - sigmoid(0.1 * 1.5), abs=1e-12)


def test_hinge_passes_gradient_exactly_on_its_corner():
    _, gradients = run(make([-1.0, 0.0], [-3.0, -3.0]), {"loss": "hinge", "beta": 0.5})
    assert gradients.tolist() == [[-0.5, 0.0], [0.5, 0.0]]


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_reference_and_baseline_get_no_gradient(name):
    leaves = [f64(-2.0, -3.0).requires_grad_() for _ in range(3)]
    counts = torch.tensor([2, 2])
    z = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    pairs = Pairs(
        chosen=Rows(sums=leaves[0], counts=counts, ref_sums=leaves[1]),
        rejected=Rows(sums=2 * leaves[0], counts=counts, ref_sums=leaves[2]),
        baseline=z,
    )
    output = preference_losses(pairs, PreferenceSettings(loss=name))
    found = torch.autograd.grad(output.losses.sum(), (*leaves[1:], z), materialize_grads=True)
    assert not any(g.any() for g in found)


@each_case
@settings(max_examples=15)
@given(seed=seeds)
def test_permuting_pairs_permutes_losses_and_gradients(case, seed):
    pairs = random_pairs(seed)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    output, gradients = run(pairs, case)
    moved = leaves(replace(pairs, chosen=pairs.chosen.select(order), rejected=pairs.rejected.select(order)))
    found, found_gradients = run(moved, case)
    assert torch.equal(found.losses, output.losses[order])
    assert torch.equal(found_gradients, gradients[:, order])


@each_case
@settings(max_examples=15)
@given(seed=seeds, cut=st.integers(0, 7))
def test_a_micro_batch_split_changes_neither_loss_gradient_nor_metrics(case, seed, cut):
    pairs = random_pairs(seed)
    weights = pair_weights(pairs.chosen.counts, pairs.rejected.counts, one_sided=case["loss"] == "kto")
    output, gradients = run(pairs, case, weights)
    parts = []
    for part in (slice(0, cut), slice(cut, None)):
        share = replace(pairs, chosen=pairs.chosen.select(part), rejected=pairs.rejected.select(part))
        parts.append((*run(leaves(share), case, weights[part]), weights[part]))
    total = sum((w * o.losses).sum() for o, _, w in parts)
    torch.testing.assert_close(total, (weights * output.losses).sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([g for _, g, _ in parts], 1), gradients, rtol=1e-12, atol=0)
    for name, whole in output.sums().items():
        for place in range(2):
            added = sum(o.sums()[name][place] for o, _, _ in parts)
            torch.testing.assert_close(added, whole[place], rtol=1e-12, atol=1e-12)


@each_case
@given(seed=seeds)
def test_garbage_in_empty_rows_changes_nothing(case, seed):
    pairs = random_pairs(seed)
    output, gradients = run(pairs, case)
    found, found_gradients = run(
        leaves(replace(pairs, chosen=soiled(pairs.chosen), rejected=soiled(pairs.rejected))), case
    )
    assert torch.equal(found.losses, output.losses)
    assert torch.equal(found_gradients, gradients)
    for name, (top, bottom) in output.sums().items():
        assert torch.equal(found.sums()[name][0], top)
        assert torch.equal(found.sums()[name][1], bottom)


@each_case
@settings(max_examples=25)
@given(seed=seeds)
def test_garbage_under_the_mask_reaches_neither_loss_nor_token_gradient(case, seed):
    batch = ragged(seed, num_rows=8)
    clean = current_logprobs(batch, seed)
    bad = garbage(clean)
    ref = batch.ref_logprobs
    found = []
    for logprobs, refs in (
        (clean, ref),
        (torch.where(batch.loss_mask, clean, bad), torch.where(batch.loss_mask, ref, bad)),
    ):
        leaf = logprobs.detach().requires_grad_()
        sums, counts = sequence_logprobs(leaf, batch)
        rows = Rows(sums=sums, counts=counts, ref_sums=sequence_logprobs(refs, batch)[0])
        pairs = replace(interleaved(rows), baseline=kto_baseline(rows))
        losses = preference_losses(pairs, PreferenceSettings(**case)).losses
        (gradient,) = torch.autograd.grad(losses.sum(), leaf, materialize_grads=True)
        assert gradient.isfinite().all()
        assert not gradient[~batch.loss_mask].any()
        found.append((losses.detach(), gradient))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@each_case
def test_an_all_masked_batch_gives_zeros(case):
    batch = ragged(3, num_rows=8)
    batch = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    logprobs = garbage(batch.rollout_logprobs).requires_grad_()
    sums, counts = sequence_logprobs(logprobs, batch)
    rows = Rows(sums=sums, counts=counts, ref_sums=sums.detach())
    pairs = replace(interleaved(rows), baseline=kto_baseline(rows))
    output = preference_losses(pairs, PreferenceSettings(**case))
    (gradient,) = torch.autograd.grad(output.losses.sum(), logprobs)
    weights = pair_weights(pairs.chosen.counts, pairs.rejected.counts, one_sided=case["loss"] == "kto")
    assert not output.losses.any()
    assert not gradient.any()
    assert not weights.any()
    assert all(bottom == 0 for _, bottom in output.sums().values())


def test_kto_counts_unpaired_rows_by_their_own_side():
    rows = Rows(sums=f64(-1, -2, -3, 0), counts=torch.tensor([1, 2, 3, 0]), ref_sums=f64(-2, -2, -2, 0))
    pairs = labelled(rows, torch.tensor([True, False, False, True]), baseline=f64(0.0)[0])
    chosen = PreferenceSettings(loss="kto", beta=1.0, desirable_weight=2.0)
    output = preference_losses(pairs, chosen)
    sums = output.sums()
    expected = [2 / (1 + math.e), 0.5, 1 / (1 + math.e), 0.0]
    assert output.losses.tolist() == pytest.approx(expected, abs=1e-12)
    assert pair_weights(pairs.chosen.counts, pairs.rejected.counts, one_sided=True).tolist() == [
        1 / 3
    ] * 3 + [0]
    assert [x.item() for x in sums["preference/chosen_reward"]] == [1, 1]
    assert [x.item() for x in sums["preference/rejected_reward"]] == [-1, 2]
    assert [x.item() for x in sums["preference/margin"]] == [0, 0]
    assert [x.item() for x in sums["preference/accuracy"]] == [0, 0]
    assert kto_balance(1, 2, chosen) == 1.0
    assert kto_balance(4, 3, PreferenceSettings(loss="kto")) == pytest.approx(4 / 3)


@given(x=st.floats(-700, -1e-300))
def test_log1mexp_agrees_with_fifty_digits(x):
    leaf = f64(x).requires_grad_()
    value = log1mexp(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    with decimal.localcontext() as context:
        context.prec, exact = 700, decimal.Decimal(x)
        rest = 1 - exact.exp()
        expected, slope = float(rest.ln()), float(-exact.exp() / rest)
    assert value.item() == pytest.approx(expected, rel=1e-12, abs=0)
    assert gradient.item() == pytest.approx(slope, rel=1e-12, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_of_certain_answers_is_finite(dtype):
    sums = torch.zeros(2, dtype=dtype, requires_grad=True)
    rows = Rows(sums=sums, counts=torch.tensor([2, 2]))
    pairs = interleaved(Rows(sums=sums * torch.tensor([1.0, 1.0], dtype=dtype), counts=rows.counts))
    losses = preference_losses(pairs, PreferenceSettings(loss="orpo")).losses
    (gradient,) = torch.autograd.grad(losses.sum(), sums)
    assert losses.item() == pytest.approx(0.1 * math.log(2), rel=1e-6)
    assert gradient.isfinite().all()


def test_a_loss_of_ones_own_gets_clean_pairs_and_its_settings():
    def squared(pairs, *, beta=1.0, power=1):
        h = pairs.chosen.log_ratios - pairs.rejected.log_ratios
        return (beta * h) ** power, h, -h

    chosen = PreferenceSettings(loss=squared, beta=2.0, kwargs=(("power", 2),))
    pairs = make([-1.0, NAN], [-2.0, -1.0], counts=([1, 0], [1, 1]))
    assert preference_losses(pairs, chosen).losses.tolist() == [4.0, 0.0]
    with pytest.raises(ValueError, match="gamma is 1"):
        PreferenceSettings(loss=squared, gamma=1.0)


def test_settings_say_whether_they_need_a_reference_and_pickle():
    for name in PREFERENCE_LOSSES:
        chosen = PreferenceSettings(loss=name)
        assert pickle.loads(pickle.dumps(chosen)) == chosen
        bare = [Rows(sums=f64(-1.0), counts=torch.tensor([1])) for _ in range(2)]
        pairs = Pairs(chosen=bare[0], rejected=bare[1], baseline=f64(0.0)[0])
        if chosen.needs_reference:
            with pytest.raises(ValueError, match="ref_sums is None"):
                preference_losses(pairs, chosen)
        else:
            assert preference_losses(pairs, chosen).losses.isfinite().all()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0, expected a number above 0"),
        ({"beta": NAN}, "beta is nan"),
        ({"beta": INF}, "beta is inf"),
        (
            {"loss": "cdpo", "label_smoothing": 0.5},
            r"label_smoothing is 0.5, expected a number in \[0, 0.5\)",
        ),
        ({"loss": "robust", "label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"loss": "simpo", "gamma": -1.0}, "gamma is -1.0, expected a number of 0 or more"),
        ({"loss": "orpo", "odds_weight": 0.0}, "odds_weight is 0.0"),
        ({"loss": "kto", "desirable_weight": 0.0}, "desirable_weight is 0.0"),
        ({"loss": "kto", "undesirable_weight": -1.0}, "undesirable_weight is -1.0"),
        ({"nll_coef": -0.1}, "nll_coef is -0.1"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.1 but dpo does not read it, expected only: beta"),
        ({"loss": "orpo", "beta": 0.1}, "beta is 0.1 but orpo does not read it"),
        ({"loss": "orpo", "nll_coef": 0.1}, "orpo has that term already"),
        ({"loss": "simp"}, "loss is 'simp'. Did you mean 'simpo'"),
    ],
)
def test_settings_refuse_what_has_no_meaning(case, message):
    with pytest.raises(ValueError, match=message):
        PreferenceSettings(**case)


def test_kto_without_its_baseline_is_refused():
    rows = Rows(sums=f64(-1.0), counts=torch.tensor([1]), ref_sums=f64(-1.0))
    with pytest.raises(ValueError, match="baseline is None but kto needs z"):
        preference_losses(Pairs(chosen=rows, rejected=rows), PreferenceSettings(loss="kto"))
