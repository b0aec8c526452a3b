"""From lists to micro-batches of ranks: nothing is split, nothing is lost, weights are those of the whole step."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.config.alignment import AlignmentRecipe
from rlhf.errors import DataError
from rlhf.order_batch import OrderBatch, PairBatch
from rlhf.vision.batches import Replay, images_of, rewards_of, step_batches
from rlhf.vision.orders import SEMANTIC, TASTE
from tests.unit.vision.recipes import captions, orders, recipe


def sized(loss: str, *, ranks: int, most: int, replay_coef: float = 1.0, replay: int = 8) -> AlignmentRecipe:
    return recipe(
        loss={"name": loss, "replay_coef": replay_coef},
        learner={"num_ranks": ranks},
        images={"per_pass": most},
        schedule={"queries_per_step": 4, "replay_per_step": replay},
    )


@settings(max_examples=60)
@given(
    number=st.integers(1, 9),
    ranks=st.integers(1, 4),
    most=st.integers(6, 40),
    tied=st.sets(st.integers(0, 8)),
)
def test_lists_are_never_split_and_weights_sum_to_one(number, ranks, most, tied):
    made = orders(number, tied=sorted(tied))
    shares = step_batches(made, captions(12), sized("rp_pl", ranks=ranks, most=most, replay=12))
    assert len(shares) == ranks
    kinds = [[type(batch) for batch in share] for share in shares]
    assert all(found == kinds[0] for found in kinds)
    found: Counter[tuple[str, tuple[str, ...]]] = Counter()
    weight = 0.0
    for share in shares:
        for batch in share:
            if isinstance(batch, OrderBatch):
                assert batch.num_images <= most
                assert len(batch.queries) == len(batch.items) == len(batch.ref_scores) == len(batch.weights)
                found.update(zip(batch.queries, batch.items, strict=True))
                weight += float(batch.weights.sum())
    assert found == Counter((order.query, order.items) for order in made)
    assert weight == pytest.approx(1, abs=1e-6)


@settings(max_examples=30)
@given(number=st.integers(1, 9), ranks=st.integers(1, 4), tied=st.sets(st.integers(0, 8)))
def test_a_list_keeps_its_scores_rewards_and_pairs(number, ranks, tied):
    made = orders(number, tied=sorted(tied))
    by_items = {order.items: order for order in made}
    shares = step_batches(made, [], sized("grpo", ranks=ranks, most=13, replay_coef=0, replay=12))
    for batch in (batch for share in shares for batch in share):
        for row, items in enumerate(batch.items):
            order = by_items[items]
            assert batch.ref_scores[row].tolist() == pytest.approx(order.ref_scores)
            assert batch.rewards[row].tolist() == pytest.approx(rewards_of(order), abs=1e-6)
            assert (batch.pairs, batch.shape, batch.queries[row]) == (order.pairs, order.shape, order.query)


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_pair_losses_read_the_first_and_the_last_image(loss):
    made = orders(5, tied=[2])
    shares = step_batches(made, [], sized(loss, ranks=2, most=6, replay_coef=0))
    batches = [batch for share in shares for batch in share]
    assert {batch.shape for batch in batches} == {(1, 2)}
    assert {items for b in batches for items in b.items} == {(o.items[0], o.items[-1]) for o in made}
    refs = {items: b.ref_scores[i].tolist() for b in batches for i, items in enumerate(b.items)}
    assert refs[made[2].items[0], made[2].items[-1]] == pytest.approx(
        [made[2].ref_scores[0], made[2].ref_scores[-1]]
    )
    assert images_of(shares) == 10


def test_sft_pairs_the_query_with_the_first_image():
    made = orders(4)
    shares = step_batches(made, captions(8), sized("sft", ranks=2, most=512))
    first, replay = zip(*shares, strict=True)
    assert [pair for b in first for pair in zip(b.images, b.texts, strict=True)] == [
        (o.items[0], o.query) for o in made
    ]
    assert all(isinstance(b, PairBatch) and not b.is_replay and b.weight == 0.25 for b in first)
    assert all(b.is_replay and b.weight == 0.125 for b in replay)


def test_replay_weighs_its_coefficient_and_equal_captions_have_equal_keys():
    shares = step_batches(
        orders(1), captions(12), sized("none", ranks=3, most=512, replay_coef=0.6, replay=12)
    )
    assert all(len(share) == 1 for share in shares)
    batches = [share[0] for share in shares]
    assert sum(b.weight * len(b.texts) for b in batches) == pytest.approx(0.6)
    pairs = [pair for b in batches for pair in zip(b.images, b.texts, strict=True)]
    assert pairs == captions(12)
    keys = torch.cat([b.keys for b in batches]).tolist()
    texts = [text for _, text in pairs]
    for i, text in enumerate(texts):
        assert [key == keys[i] for key in keys] == [other == text for other in texts]


@pytest.mark.parametrize("loss", ["dpo", "ipo", "sft", "sft_list", "grpo"])
def test_losses_that_read_places_refuse_labels_of_people(loss):
    labelled = [replace(order, teacher={}, pairs=((1, 0),)) for order in orders(4)]
    with pytest.raises(
        DataError, match=rf"loss\.name is {loss}, .*list of query 'q0' has pairs of its own.*Use rp_"
    ):
        step_batches(labelled, captions(8), sized(loss, ranks=1, most=512))


@pytest.mark.parametrize("loss", ["rp_dpo", "rp_pl"])
def test_losses_of_pairs_take_labels_of_people(loss):
    labelled = [replace(order, teacher={}, pairs=((1, 0),)) for order in orders(4)]
    (share,) = step_batches(labelled, captions(8), sized(loss, ranks=1, most=512))
    assert share[0].pairs == ((1, 0),)
    assert share[0].rewards is None


def test_rewards_add_the_z_scores_of_both_teachers():
    order = replace(
        orders(1)[0],
        teacher={SEMANTIC: (5.0, 4.0, 3.0, 2.0, 1.0, 0.0), TASTE: (7.0,) * 6, "sharp": (9.0,) * 6},
    )
    spread = (sum((x - 2.5) ** 2 for x in range(6)) / 6) ** 0.5
    assert rewards_of(order) == pytest.approx([(5 - k - 2.5) / spread for k in range(6)])
    both = replace(order, teacher={SEMANTIC: order.teacher[SEMANTIC], TASTE: (1.0, 0, 0, 0, 0, 0)})
    of_taste = [(x - 1 / 6) / (5**0.5 / 6) for x in (1, 0, 0, 0, 0, 0)]
    assert rewards_of(both) == pytest.approx([(5 - k - 2.5) / spread + of_taste[k] for k in range(6)])
    assert rewards_of(replace(order, teacher={})) == ()


@settings(max_examples=30)
@given(size=st.integers(1, 20), per_step=st.integers(1, 25), seed=st.integers(0, 100))
def test_replay_gives_every_caption_once_a_pass_whatever_the_step(size, per_step, seed):
    pairs = [(f"i{k}", f"text {k}") for k in range(size)]
    replay = Replay(pairs, per_step=per_step, seed=seed)
    steps = -(-3 * size // per_step)
    stream = [pair for step in range(steps) for pair in replay.at(step)]
    assert len(stream) == steps * per_step
    for start in range(0, 3 * size, size):
        assert sorted(stream[start : start + size]) == sorted(pairs)
    assert Replay(pairs, per_step=per_step, seed=seed).at(steps - 1) == stream[-per_step:]


def test_replay_is_shuffled_anew_each_pass_and_by_seed():
    pairs = [(f"i{k}", f"text {k}") for k in range(20)]
    first, second = (Replay(pairs, per_step=20, seed=1).at(step) for step in (0, 1))
    assert first not in (pairs, second)
    assert Replay(pairs, per_step=20, seed=2).at(0) != first


def test_images_of_a_step_counts_an_image_in_two_lists_twice():
    made = orders(1)
    (share,) = step_batches([made[0], made[0]], captions(8), sized("rp_pl", ranks=1, most=512))
    assert images_of([share]) == 12 + 8


def test_a_selection_of_lists_is_in_the_order_asked_for():
    (share,) = step_batches(orders(4), [], sized("grpo", ranks=1, most=512, replay_coef=0))
    batch = share[0]
    found = batch.select([2, 0])
    assert found.queries == (batch.queries[2], batch.queries[0])
    assert torch.equal(found.ref_scores, batch.ref_scores[[2, 0]])
    assert torch.equal(found.rewards, batch.rewards[[2, 0]])
    none = batch.select([])
    assert none.is_empty
    assert none.num_images == 0
    assert not batch.is_empty
