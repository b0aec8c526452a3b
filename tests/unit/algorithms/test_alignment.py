"""Losses of retrieval alignment against slow ones from the formulas, in float64."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from rlhf.algorithms.alignment import AlignmentSettings, Lists, Negatives, list_losses, nce
from rlhf.algorithms.ranking import grid_pairs
from tests.unit.algorithms import alignment_reference as slow
from tests.unit.algorithms.random_pairs import f64

seeds = st.integers(0, 10_000)
U, V = 3, 4


def draw(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=g, dtype=torch.float64)


def lists(scores: torch.Tensor, ref_scores: torch.Tensor, shape: tuple[int, int], **more) -> Lists:
    return Lists(scores=scores, ref_scores=ref_scores, shape=shape, **more)


def losses_and_gradient(what: Lists, which: AlignmentSettings) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = what.scores.detach().clone().requires_grad_()
    output = list_losses(
        Lists(
            scores=leaf, ref_scores=what.ref_scores, shape=what.shape, pairs=what.pairs, rewards=what.rewards
        ),
        which,
    )
    (gradient,) = torch.autograd.grad(output.losses.sum(), leaf)
    return output.losses.detach(), gradient


def slow_loss(name: str, ratios: list[float], beta: float, smoothing: float) -> float:
    utilities = [beta * x for x in ratios]
    match name:
        case "rp_dpo":
            return slow.rp_dpo(utilities, slow.ordered(U, V), smoothing)
        case "rp_pl":
            return slow.rp_pl(utilities, slow.lines(U, V))
        case "dpo":
            return slow.rp_dpo(utilities, [(0, len(utilities) - 1)], smoothing)
        case _:
            return slow.ipo(ratios, beta)


@settings(max_examples=20)
@given(seed=seeds, beta=st.sampled_from([0.1, 1.0, 3.0]), scale=st.sampled_from([5.0, 100.0]))
@pytest.mark.parametrize(("name", "smoothing"), [
    ("rp_dpo", 0.0), ("rp_dpo", 0.1), ("rp_pl", 0.0), ("dpo", 0.0), ("dpo", 0.2), ("ipo", 0.0),
])  # fmt: skip
def test_the_partition_function_of_the_whole_gallery_cancels(name, smoothing, seed, beta, scale):
    gallery, query = normalize(draw(seed, 50, 8), dim=1), normalize(draw(seed + 1, 2, 8), dim=1)
    ref_gallery = normalize(gallery + draw(seed + 2, 50, 8, scale=0.3), dim=1)
    places = torch.randperm(50, generator=torch.Generator().manual_seed(seed))[: U * V]
    every, ref_every = scale * query @ gallery.T, 0.7 * scale * query @ ref_gallery.T
    which = AlignmentSettings(loss=name, beta=beta, label_smoothing=smoothing)
    found = list_losses(lists(every[:, places], ref_every[:, places], (U, V)), which).losses
    for row in range(2):
        logprobs, ref_logprobs = (
            slow.log_softmax(every[row].tolist()),
            slow.log_softmax(ref_every[row].tolist()),
        )
        ratios = [logprobs[k] - ref_logprobs[k] for k in places.tolist()]
        assert found[row].item() == pytest.approx(
            slow_loss(name, ratios, beta, smoothing), abs=1e-6, rel=1e-6
        )


def test_the_grid_of_five_by_five_has_a_hundred_pairs_and_each_counts_alike():
    assert len(grid_pairs(5, 5)) == 5 * math.comb(5, 2) + 5 * math.comb(5, 2) == 100
    utilities = draw(3, 1, 25)
    found = list_losses(
        lists(utilities, torch.zeros_like(utilities), (5, 5)), AlignmentSettings(loss="rp_dpo")
    )
    terms = [-slow.log_sigmoid(float(utilities[0, a] - utilities[0, b])) for a, b in slow.ordered(5, 5)]
    assert len(terms) == 100
    assert found.losses.item() == pytest.approx(sum(terms) / 100, abs=1e-12)


@pytest.mark.parametrize(("u", "v"), [(1, 2), (2, 1), (1, 5), (2, 3), (3, 3)])
def test_pairs_of_any_grid_are_counted_as_the_formula_says(u, v):
    number = u * math.comb(v, 2) + v * math.comb(u, 2)
    assert len(grid_pairs(u, v)) == len(slow.ordered(u, v)) == number


def test_dominance_adds_the_pairs_across_rows_and_columns():
    utilities = draw(4, 1, 4)
    which = AlignmentSettings(loss="rp_dpo", closure="dominance")
    found = list_losses(lists(utilities, torch.zeros_like(utilities), (2, 2)), which)
    pairs = [*slow.ordered(2, 2), (0, 3)]
    assert found.losses.item() == pytest.approx(slow.rp_dpo(utilities[0].tolist(), pairs, 0.0), abs=1e-12)


@given(seed=seeds, n=st.integers(2, 5))
@settings(max_examples=20)
def test_a_chain_is_the_likelihood_of_its_ranking(seed, n):
    utilities = draw(seed, 1, n)
    probabilities = slow.ranking_probabilities(utilities[0].tolist())
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-12)
    for order in permutations(range(n)):
        best_first = utilities[:, list(order)]
        found = list_losses(lists(best_first, torch.zeros_like(best_first), (1, n)), AlignmentSettings())
        assert math.exp(-(n - 1) * found.losses.item()) == pytest.approx(probabilities[order], rel=1e-9)


@given(seed=seeds)
@settings(max_examples=20)
@pytest.mark.parametrize("name", ["rp_dpo", "rp_pl"])
def test_places_held_equal_are_no_pair_and_feel_no_force_from_each_other(name, seed):
    utilities = draw(seed, 1, 4)
    pairs = ((0, 1), (0, 2), (1, 3), (2, 3))  # 1 and 2 are a tie
    what = lists(utilities, torch.zeros_like(utilities), (2, 2), pairs=pairs)
    found, gradient = losses_and_gradient(what, AlignmentSettings(loss=name))
    assert found.item() == pytest.approx(slow.rp_dpo(utilities[0].tolist(), pairs, 0.0), abs=1e-12)
    swapped = lists(utilities[:, [0, 2, 1, 3]], what.ref_scores, (2, 2), pairs=pairs)
    other, other_gradient = losses_and_gradient(swapped, AlignmentSettings(loss=name))
    torch.testing.assert_close(other, found, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other_gradient[:, [0, 2, 1, 3]], gradient, rtol=1e-12, atol=1e-12)


@given(seed=seeds, factor=st.sampled_from([0.25, 3.0, 20.0]))
@settings(max_examples=20)
@pytest.mark.parametrize("name", ["rp_dpo", "rp_pl", "dpo", "ipo"])
def test_beta_and_scale_act_by_their_product_alone(name, seed, factor):
    cosines, ref_cosines = torch.tanh(draw(seed, 3, U * V)), torch.tanh(draw(seed + 1, 3, U * V))
    beta, scale = 0.5, 10.0
    first = lists(scale * cosines, scale * ref_cosines, (U, V))
    second = lists(scale / factor * cosines, scale / factor * ref_cosines, (U, V))
    one = list_losses(first, AlignmentSettings(loss=name, beta=beta)).losses
    two = list_losses(second, AlignmentSettings(loss=name, beta=beta * factor)).losses
    if name == "ipo":  # in units of 1 / beta^2
        one, two = one * beta**2, two * (beta * factor) ** 2
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)


@given(seed=seeds)
@settings(max_examples=20)
def test_sft_list_is_the_cross_entropy_of_the_first_image(seed):
    scores = draw(seed, 2, 6, scale=3.0)
    found = list_losses(lists(scores, draw(seed + 1, 2, 6), (2, 3)), AlignmentSettings(loss="sft_list"))
    expected = [-slow.log_softmax(row)[0] for row in scores.tolist()]
    assert found.losses.tolist() == pytest.approx(expected, abs=1e-12)


@given(seed=seeds)
@settings(max_examples=20)
def test_grpo_gradient_is_that_of_the_expected_reward_in_units_of_its_spread(seed):
    scores, rewards = draw(seed, 1, 5), draw(seed + 1, 1, 5)
    _, gradient = losses_and_gradient(
        lists(scores, scores, (1, 5), rewards=rewards), AlignmentSettings(loss="grpo")
    )
    assert gradient[0].tolist() == pytest.approx(
        slow.pool_gradient(scores[0].tolist(), rewards[0].tolist()), abs=1e-9
    )
    leaf = scores.clone().requires_grad_()
    policy = leaf.softmax(1)
    expected = (policy * rewards).sum()
    std = (policy * (rewards - expected).square()).sum().sqrt().item()
    (of_reward,) = torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(gradient, -of_reward / std, rtol=1e-9, atol=1e-9)


def test_grpo_is_the_limit_of_groups_of_samples():
    scores, rewards = f64(0.3, -1.0, 0.8, 0.0), f64(1.0, 0.0, -2.0, 0.5)
    _, gradient = losses_and_gradient(
        lists(scores[None], scores[None], (2, 2), rewards=rewards[None]), AlignmentSettings(loss="grpo")
    )
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(scores.softmax(0), 400_000, replacement=True, generator=generator)
    got = rewards[drawn]
    advantages = (got - got.mean()) / got.std(correction=0)
    leaf = scores.clone().requires_grad_()
    loss = -(advantages * leaf.log_softmax(0)[drawn]).mean()
    (sampled,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(gradient[0], sampled, rtol=0, atol=5e-3)


@given(seed=seeds, kl_coef=st.sampled_from([0.0, 0.5]))
@settings(max_examples=20)
def test_grpo_of_equal_rewards_has_no_gradient_but_that_of_kl(seed, kl_coef):
    scores, ref_scores = draw(seed, 3, 6), draw(seed + 1, 3, 6)
    rewards = draw(seed + 2, 3, 1).expand(3, 6)
    which = AlignmentSettings(loss="grpo", kl_coef=kl_coef)
    found, gradient = losses_and_gradient(lists(scores, ref_scores, (2, 3), rewards=rewards), which)
    expected = [kl_coef * slow.kl(s, r) for s, r in zip(scores.tolist(), ref_scores.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    leaf = scores.clone().requires_grad_()
    forced = kl_coef * torch.nn.functional.kl_div(
        ref_scores.log_softmax(1), leaf.log_softmax(1), log_target=True, reduction="sum"
    )
    (of_kl,) = torch.autograd.grad(forced, leaf)
    torch.testing.assert_close(gradient, of_kl, rtol=1e-9, atol=1e-12)
    assert gradient.any() == (kl_coef > 0)


@given(seed=seeds, shift=st.floats(-100, 100), factor=st.floats(0.1, 10))
@settings(max_examples=20)
def test_grpo_does_not_feel_the_units_of_rewards(seed, shift, factor):
    scores, rewards = draw(seed, 2, 4), draw(seed + 1, 2, 4)
    which = AlignmentSettings(loss="grpo")
    _, one = losses_and_gradient(lists(scores, scores, (2, 2), rewards=rewards), which)
    _, two = losses_and_gradient(lists(scores, scores, (2, 2), rewards=factor * rewards + shift), which)
    torch.testing.assert_close(two, one, rtol=1e-6, atol=1e-8)


def test_grpo_without_rewards_is_refused():
    with pytest.raises(ValueError, match="rewards is None but loss grpo reads them"):
        list_losses(lists(f64(1, 2)[None], f64(1, 2)[None], (1, 2)), AlignmentSettings(loss="grpo"))


@pytest.mark.parametrize("name", ["rp_dpo", "rp_pl", "dpo", "ipo", "sft_list", "grpo"])
@given(seed=seeds, cut=st.integers(0, 4))
@settings(max_examples=10)
def test_lists_do_not_see_each_other(name, seed, cut):
    scores, ref_scores, rewards = draw(seed, 3, 4, 6)
    which = AlignmentSettings(loss=name)
    whole, gradient = losses_and_gradient(lists(scores, ref_scores, (2, 3), rewards=rewards), which)
    for part in (slice(0, cut), slice(cut, None)):
        if len(scores[part]):
            share = lists(scores[part], ref_scores[part], (2, 3), rewards=rewards[part])
            found, own = losses_and_gradient(share, which)
            torch.testing.assert_close(found, whole[part], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(own, gradient[part], rtol=1e-12, atol=1e-12)


def pairs_of_ranks(seed: int, number: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor, list[Negatives]]:
    texts, images = normalize(draw(seed, number, 6), dim=1), normalize(draw(seed + 1, number, 6), dim=1)
    keys = torch.randint(0, 5, (number,), generator=torch.Generator().manual_seed(seed))
    size = number // ranks
    shares = [
        Negatives(
            all_texts=texts,
            all_images=images,
            keys=keys[rank * size : (rank + 1) * size],
            all_keys=keys,
            offset=rank * size,
        )
        for rank in range(ranks)
    ]
    return texts, images, shares


@given(seed=seeds, smoothing=st.sampled_from([0.0, 0.1, 0.5]), ranks=st.sampled_from([1, 2, 4]))
@settings(max_examples=30)
def test_nce_agrees_with_a_double_loop_on_any_number_of_ranks(seed, smoothing, ranks):
    texts, images, shares = pairs_of_ranks(seed, 8, ranks)
    size = 8 // ranks
    found = [
        nce(
            texts[share.offset : share.offset + size],
            images[share.offset : share.offset + size],
            share,
            scale=f64(12.0)[0],
            label_smoothing=smoothing,
        )
        for share in shares
    ]
    expected = slow.nce(
        texts.tolist(), images.tolist(), shares[0].all_keys.tolist(), scale=12.0, smoothing=smoothing
    )
    assert torch.cat(found).tolist() == pytest.approx(expected, abs=1e-9)


def test_nce_leaves_out_pairs_that_say_the_same():
    texts, images, _ = pairs_of_ranks(1, 3, 1)

    def loss(rows: list[int], keys: list[int]) -> list[float]:
        negatives = Negatives(
            all_texts=texts[rows],
            all_images=images[rows],
            keys=torch.tensor(keys),
            all_keys=torch.tensor(keys),
        )
        return nce(texts[rows], images[rows], negatives, scale=f64(9.0)[0]).tolist()

    both = loss([0, 1, 2], [7, 8, 7])
    assert both[0] == pytest.approx(loss([0, 1], [7, 8])[0], abs=1e-12)
    assert both[2] == pytest.approx(loss([1, 2], [8, 7])[1], abs=1e-12)
    assert loss([0, 2], [7, 7]) == pytest.approx([0.0, 0.0], abs=1e-12)


@given(seed=seeds)
@settings(max_examples=10)
def test_nce_with_duplicates_and_smoothing_has_a_finite_gradient(seed):
    texts, images, (share,) = pairs_of_ranks(seed, 6, 1)
    leaves = [texts.clone().requires_grad_(), images.clone().requires_grad_()]
    negatives = Negatives(all_texts=leaves[0], all_images=leaves[1], keys=share.keys, all_keys=share.all_keys)
    loss = nce(*leaves, negatives, scale=f64(50.0)[0], label_smoothing=0.1).sum()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize(
    ("given_settings", "says"),
    [
        ({"beta": 0.0}, r"beta is 0\.0, expected a number above 0"),
        ({"beta": math.nan}, "beta is nan"),
        ({"loss": "rp_dpo", "label_smoothing": 0.5}, r"label_smoothing is 0\.5, expected a number in \[0, 0\.5\)"),
        ({"loss": "grpo", "kl_coef": -1.0}, r"kl_coef is -1\.0, expected a number of 0 or more"),
        ({"label_smoothing": 0.1}, "label_smoothing is set but loss rp_pl does not read it, only rp_dpo, dpo do"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "loss ipo does not read it"),
        ({"loss": "rp_dpo", "kl_coef": 0.1}, "kl_coef is set but loss rp_dpo does not read it, only grpo do"),
        ({"loss": "dpo", "closure": "dominance"}, "closure is set but loss dpo does not read it, only rp_dpo do"),
    ],
)  # fmt: skip
def test_settings_refuse_what_has_no_meaning_or_no_reader(given_settings, says):
    with pytest.raises(ValueError, match=says):
        AlignmentSettings(**given_settings)


@pytest.mark.parametrize("name", ["sft", "none"])
def test_a_loss_that_reads_no_lists_is_refused(name):
    with pytest.raises(ValueError, match=f"loss {name} is no loss of lists"):
        list_losses(lists(f64(1, 2)[None], f64(1, 2)[None], (1, 2)), AlignmentSettings(loss=name))


@pytest.mark.parametrize("name", ["rp_dpo", "rp_pl"])
@pytest.mark.parametrize(
    ("pairs", "says"),
    [((), "is empty"), (((0, 1), (1, 2), (2, 0)), "circle"), (((0, 3),), r"pairs has \(0, 3\)")],
)
def test_pairs_that_are_no_partial_order_are_refused_and_not_taken_for_a_grid(name, pairs, says):
    what = lists(f64(1, 2, 3)[None], f64(1, 2, 3)[None], (1, 3), pairs=pairs)
    with pytest.raises(ValueError, match=says):
        list_losses(what, AlignmentSettings(loss=name))
