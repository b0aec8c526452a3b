import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.algorithms.pairs import Pairs, Rows
from rlhf.algorithms.preference import PreferenceSettings, preference_losses
from rlhf.algorithms.ranking import (
    bradley_terry,
    check_pairs,
    grid_chains,
    grid_pairs,
    plackett_luce,
    ranked_partial_dpo,
    ranked_partial_pl,
)
from tests.unit.algorithms import loss_reference
from tests.unit.algorithms import preference_reference as reference
from tests.unit.algorithms.ragged import garbage
from tests.unit.algorithms.random_pairs import f64

seeds = st.integers(0, 10_000)
scales = st.sampled_from([0.3, 3.0, 1e4])
U, V = 2, 3
PAIRS = grid_pairs(U, V)
CHAINS = grid_chains(U, V)


def lists(seed: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Utilities of five lists of six items, and which are present: in the first all, in the last none."""
    g = torch.Generator().manual_seed(seed)
    utilities = scale * torch.randn(5, U * V, generator=g, dtype=torch.float64)
    present = torch.rand(5, U * V, generator=g) < 0.6
    present[0], present[4] = True, False
    return utilities, present


def run(loss, utilities: torch.Tensor, *args, **settings):
    leaf = utilities.detach().clone().requires_grad_()
    output = loss(leaf, *args, **settings)
    (gradient,) = torch.autograd.grad(output.losses.sum(), leaf, materialize_grads=True)
    return output, gradient


def assert_agrees(found, utilities, slow_of) -> None:
    output, gradient = found
    for row, at in enumerate(utilities.tolist()):

        def slow(live, row=row):
            return complex(slow_of(row, live))

        assert output.losses[row].item() == pytest.approx(slow(at).real, abs=1e-9, rel=1e-9)
        assert gradient[row].tolist() == pytest.approx(loss_reference.gradient(slow, at), abs=1e-9, rel=1e-9)


@settings(max_examples=40)
@given(
    seed=seeds, scale=scales, top=st.none() | st.integers(1, 8), reduction=st.sampled_from(["sum", "mean"])
)
def test_plackett_luce_agrees_with_the_slow_reference(seed, scale, top, reduction):
    utilities, present = lists(seed, scale)

    def slow(row, live):
        kept = [u for u, p in zip(live, present[row].tolist(), strict=True) if p]
        total, number = reference.plackett_luce(kept, top)
        return total / max(number, 1) if reduction == "mean" else total

    found = run(plackett_luce, utilities, present=present, top=top, reduction=reduction)
    assert_agrees(found, utilities, slow)


@settings(max_examples=40)
@given(seed=seeds, scale=scales, smoothing=st.sampled_from([0.0, 0.1, 0.4]))
@pytest.mark.parametrize("closure", ["rows_columns", "dominance"])
def test_ranked_partial_dpo_agrees_with_the_slow_reference(closure, seed, scale, smoothing):
    utilities, present = lists(seed, scale)
    pairs = grid_pairs(U, V, closure=closure)
    found = run(ranked_partial_dpo, utilities, pairs, label_smoothing=smoothing, present=present)
    masks = present.tolist()
    assert_agrees(
        found, utilities, lambda row, live: reference.ranked_pairs(live, pairs, masks[row], smoothing)
    )


@settings(max_examples=40)
@given(seed=seeds, scale=scales)
def test_ranked_partial_pl_agrees_with_the_slow_reference(seed, scale):
    utilities, present = lists(seed, scale)
    masks = present.tolist()
    found = run(ranked_partial_pl, utilities, CHAINS, present=present)
    assert_agrees(found, utilities, lambda row, live: reference.ranked_chains(live, CHAINS, masks[row]))


@settings(max_examples=40)
@given(seed=seeds, top=st.none() | st.integers(1, 8))
def test_accuracies_agree_with_the_slow_reference(seed, top):
    utilities, present = lists(seed, 1.5)
    utilities = utilities.round()  # many ties
    found = [
        plackett_luce(utilities, present=present, top=top).accuracy,
        ranked_partial_dpo(utilities, PAIRS, present=present).accuracy,
        ranked_partial_pl(utilities, CHAINS, present=present).accuracy,
    ]
    for row, (values, kept) in enumerate(zip(utilities.tolist(), present.tolist(), strict=True)):
        chains = [[k for k in chain if kept[k]] for chain in (range(U * V), *CHAINS)]
        chosen, *along = ([(c[j], c[j + 1 :]) for j in range(len(c) - 1)] for c in chains)
        pairs = [(w, [x]) for w, x in PAIRS if kept[w] and kept[x]]
        of_chains = [reference.strictly_right(values, chain) for chain in along if chain]
        assert [accuracy[row].item() for accuracy in found] == pytest.approx(
            [
                reference.strictly_right(values, chosen[:top]),
                reference.strictly_right(values, pairs),
                sum(of_chains) / max(len(of_chains), 1),
            ]
        )


EVERY = [(plackett_luce, ()), (ranked_partial_dpo, (PAIRS,)), (ranked_partial_pl, (CHAINS,))]
each_loss = pytest.mark.parametrize(("loss", "args"), EVERY, ids=lambda x: getattr(x, "__name__", ""))


@each_loss
@given(seed=seeds)
def test_absent_items_are_never_read_and_empty_lists_give_zeros(loss, args, seed):
    utilities, present = lists(seed, 1.0)
    dirty = torch.where(present, utilities, garbage(utilities).reshape(utilities.shape))
    clean, found = run(loss, utilities, *args, present=present), run(loss, dirty, *args, present=present)
    assert torch.equal(found[0].losses, clean[0].losses)
    assert torch.equal(found[0].accuracy, clean[0].accuracy)
    assert torch.equal(found[1], clean[1])
    assert not found[1][~present].any()
    assert found[0].losses[4] == 0
    assert not found[0].counted[4]
    assert found[0].counted[0]


@each_loss
@given(seed=seeds, cut=st.integers(0, 5))
def test_lists_do_not_see_each_other(loss, args, seed, cut):
    utilities, present = lists(seed, 1.0)
    whole, gradient = run(loss, utilities, *args, present=present)
    for part in (slice(0, cut), slice(cut, None)):
        share, share_gradient = run(loss, utilities[part], *args, present=present[part])
        torch.testing.assert_close(share.losses, whole.losses[part], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(share_gradient, gradient[part], rtol=1e-12, atol=1e-12)


@given(seed=seeds)
def test_the_order_of_pairs_and_a_shift_of_all_utilities_change_nothing(seed):
    utilities, present = lists(seed, 1.0)
    whole, gradient = run(ranked_partial_dpo, utilities, PAIRS, present=present)
    moved, moved_gradient = run(ranked_partial_dpo, utilities + 7, PAIRS[::-1], present=present)
    torch.testing.assert_close(moved.losses, whole.losses, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved_gradient, gradient, rtol=1e-9, atol=1e-9)


@given(a=st.floats(-50, 50), b=st.floats(-50, 50))
def test_two_items_are_dpo_in_every_form(a, b):
    rows = [Rows(sums=f64(x), counts=torch.tensor([1]), ref_sums=f64(0.0)) for x in (a, b)]
    dpo = preference_losses(
        Pairs(chosen=rows[0], rejected=rows[1]), PreferenceSettings(beta=1.0)
    ).losses.item()
    utilities = f64(a, b)[None]
    assert plackett_luce(utilities).losses.item() == pytest.approx(dpo, abs=1e-12)
    assert ranked_partial_dpo(utilities, [(0, 1)]).losses.item() == pytest.approx(dpo, abs=1e-12)
    assert ranked_partial_pl(utilities, grid_chains(1, 2)).losses.item() == pytest.approx(dpo, abs=1e-12)
    assert bradley_terry(f64(a), f64(b)).losses.item() == pytest.approx(dpo, abs=1e-12)


def test_plackett_luce_top_one_is_the_cross_entropy_of_the_winner():
    utilities = f64(0.3, -1.0, 2.0)[None]
    expected = torch.nn.functional.cross_entropy(utilities, torch.tensor([0]))
    assert plackett_luce(utilities, top=1).losses.item() == pytest.approx(expected.item(), abs=1e-12)


def test_accuracy_counts_strictly_right_comparisons():
    utilities = f64(3, 2, 2)[None]
    assert plackett_luce(utilities).accuracy.tolist() == [0.5]
    assert ranked_partial_dpo(utilities, [(0, 1), (1, 2)]).accuracy.tolist() == [0.5]
    assert ranked_partial_dpo(utilities, [(0, 1), (0, 2)]).accuracy.tolist() == [1.0]
    assert ranked_partial_pl(torch.zeros(1, 4, dtype=torch.float64), grid_chains(2, 2)).accuracy.tolist() == [
        0.0
    ]


@settings(max_examples=40)
@given(seed=seeds, scale=st.sampled_from([1.0, 1e4]), centre=st.sampled_from([0.0, 0.01]))
def test_bradley_terry_agrees_with_the_slow_reference(seed, scale, centre):
    g = torch.Generator().manual_seed(seed)
    scores, margin = (
        scale * torch.randn(4, 2, generator=g, dtype=torch.float64),
        torch.rand(4, generator=g).double(),
    )
    leaf = scores.clone().requires_grad_()
    output = bradley_terry(leaf[:, 0], leaf[:, 1], margin=margin, centre_coef=centre)
    (gradient,) = torch.autograd.grad(output.losses.sum(), leaf)
    slow = [lambda live, m=m: complex(reference.bradley_terry(*live, m, centre)) for m in margin.tolist()]
    for row, at in enumerate(scores.tolist()):
        assert output.losses[row].item() == pytest.approx(slow[row](at).real, abs=1e-9, rel=1e-9)
        assert gradient[row].tolist() == pytest.approx(
            loss_reference.gradient(slow[row], at), abs=1e-9, rel=1e-9
        )


@given(seed=seeds, cut=st.integers(0, 6))
def test_bradley_terry_pairs_do_not_see_each_other(seed, cut):
    g = torch.Generator().manual_seed(seed)
    chosen, rejected, margin = torch.randn(3, 6, generator=g, dtype=torch.float64).unbind()
    whole = bradley_terry(chosen, rejected, margin=margin, centre_coef=0.01)
    parts = [
        bradley_terry(chosen[part], rejected[part], margin=margin[part], centre_coef=0.01)
        for part in (slice(0, cut), slice(cut, None))
    ]
    assert torch.equal(torch.cat([part.losses for part in parts]), whole.losses)
    for name, (top, bottom) in whole.sums().items():
        assert sum(part.sums()[name][0].item() for part in parts) == pytest.approx(top.item())
        assert sum(part.sums()[name][1].item() for part in parts) == bottom == 6


def test_bradley_terry_is_finite_where_log_of_one_plus_exp_overflows():
    output = bradley_terry(torch.tensor([-100.0, 100.0]), torch.tensor([100.0, -100.0]))
    assert output.losses.tolist() == [200.0, 0.0]
    assert output.sums()["preference/accuracy"][0] == 1
    assert bradley_terry(
        torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)
    ).losses.tolist() == [pytest.approx(math.log(2))]


@pytest.mark.parametrize(("u", "v"), [(1, 5), (5, 1), (2, 3), (5, 5)])
def test_grids_have_the_pairs_of_their_order(u, v):
    cells = [divmod(k, v) for k in range(u * v)]
    above = {
        (a, b)
        for a, (i, j) in enumerate(cells)
        for b, (k, m) in enumerate(cells)
        if a != b and i <= k and j <= m
    }
    lines = {(a, b) for a, b in above if a // v == b // v or a % v == b % v}
    found = grid_pairs(u, v)
    assert set(found) == lines
    assert len(found) == u * math.comb(v, 2) + v * math.comb(u, 2)
    assert sorted(grid_pairs(u, v, closure="dominance")) == sorted(above)
    by_chain = {(c[a], c[b]) for c in grid_chains(u, v) for a in range(len(c)) for b in range(a + 1, len(c))}
    assert by_chain == lines
    check_pairs(grid_pairs(u, v, closure="dominance"), u * v)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "pairs is empty"),
        ([(0, 3)], r"pairs has \(0, 3\), expected \(winner, loser\), both from 0 to 2"),
        ([(-1, 0)], r"pairs has \(-1, 0\)"),
        ([(0, 1), (0, 1)], r"pairs has \(0, 1\) more than once"),
        ([(1, 1)], "circle"),
        ([(0, 1), (1, 0)], "circle"),
        ([(0, 1), (1, 2), (2, 0)], "circle"),
    ],
)
def test_pairs_that_are_no_partial_order_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        ranked_partial_dpo(torch.zeros(1, 3), pairs)


def test_ranked_settings_refuse_what_has_no_meaning():
    utilities = torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.5"):
        ranked_partial_dpo(utilities, [(0, 1)], label_smoothing=0.5)
    with pytest.raises(ValueError, match="top is 0, expected 1 or more"):
        plackett_luce(utilities, top=0)
    with pytest.raises(ValueError, match="chains is empty"):
        ranked_partial_pl(utilities, [])
    with pytest.raises(ValueError, match="circle"):
        ranked_partial_pl(utilities, [[0, 1, 0]])
    with pytest.raises(ValueError, match="centre_coef is -1"):
        bradley_terry(torch.zeros(1), torch.zeros(1), centre_coef=-1.0)
    with pytest.raises(ValueError, match="margin is nan"):
        bradley_terry(torch.zeros(1), torch.zeros(1), margin=float("nan"))
    with pytest.raises(ValueError, match="the grid is 1 x 1"):
        grid_pairs(1, 1)
