"""Measures by examples worked by hand."""

import math

import pytest
import torch

from rlhf.vision.measures import (
    Answers,
    answer_measures,
    answers_of,
    bootstrap,
    caption_recalls,
    means,
    zero_shot,
)

TASTE = torch.tensor([1.0, 3.0, 2.0, 5.0])
RELEVANT = torch.tensor([[True, True, False, False], [False, False, False, True]])
PICTURES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])


def measured(places: list[list[int]]) -> dict[str, list[float]]:
    answers = answers_of(torch.tensor(places), taste=TASTE, relevant=RELEVANT)
    found = answer_measures(answers, taste=TASTE, relevant=RELEVANT, reference=PICTURES)
    return {name: values.tolist() for name, values in found.items()}


def test_answers_look_up_taste_and_relevance_of_each_query():
    answers = answers_of(torch.tensor([[3, 1], [3, 0]]), taste=TASTE, relevant=RELEVANT)
    assert isinstance(answers, Answers)
    assert answers.taste.tolist() == [[5, 3], [5, 1]]
    assert answers.relevant.tolist() == [[False, True], [True, False]]


def test_taste_and_precision_are_means_over_the_first_k():
    found = measured([[3, 1], [3, 0]])
    assert found["taste"] == [4, 3]
    assert found["precision"] == [0.5, 0.5]


def test_ndcg_gains_what_is_relevant_by_its_taste_above_the_lowest():
    # Query 0: relevant are 0 (gain 0) and 1 (gain 2); query 1: only 3 (gain 4).
    second = 1 / math.log2(3)
    assert measured([[3, 1], [3, 0]])["ndcg"] == pytest.approx([second, 1.0])
    assert measured([[1, 0], [0, 3]])["ndcg"] == pytest.approx([1.0, second])
    assert measured([[2, 3], [1, 2]])["ndcg"] == [0.0, 0.0]


def test_ndcg_of_a_query_that_nothing_answers_is_zero_not_nan():
    none = torch.zeros(1, 4, dtype=torch.bool)
    answers = answers_of(torch.tensor([[0, 1]]), taste=TASTE, relevant=none)
    found = answer_measures(answers, taste=TASTE, relevant=none, reference=PICTURES)
    assert found["ndcg"].tolist() == [0]


def test_diversity_is_the_mean_distance_of_two_answers():
    assert measured([[0, 3], [0, 2]])["diversity"] == pytest.approx([0.0, 2.0])
    # Distances 1 (0 and 1), 2 (0 and 2), 1 (1 and 2).
    assert measured([[0, 1, 2], [0, 1, 3]])["diversity"] == pytest.approx([4 / 3, 2 / 3])
    assert measured([[0], [1]])["diversity"] == [0.0, 0.0]


def test_zero_shot_counts_pictures_nearest_to_the_text_of_their_class():
    classes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    images = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    assert zero_shot(images, classes, [0, 1, 1]).tolist() == [1, 1, 0]


def test_recall_counts_any_picture_with_the_very_caption():
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    images = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.0]])
    found = caption_recalls(texts, images, ["red", "blue", "red"])
    # Text 0 and 2 meet picture 1 (blue) first; text 1 meets picture 0 (red) first.
    assert found["recall_1"].tolist() == [0, 0, 0]
    # Picture 0 meets text 1 (blue); picture 1 (blue) meets text 0 (red); picture 2 (red) meets text 0 (red).
    assert found["image_recall_1"].tolist() == [0, 0, 1]
    assert found["recall_10"].tolist() == found["image_recall_10"].tolist() == [1, 1, 1]


def test_recall_at_ten_looks_at_ten():
    angles = torch.linspace(0, 1, 30)
    points = torch.stack([angles.cos(), angles.sin()], 1)
    found = caption_recalls(points[:1].expand(30, 2), points, [str(k) for k in range(30)])
    assert found["recall_10"].tolist() == [1.0] * 10 + [0.0] * 20
    assert found["recall_1"].tolist() == [1.0] + [0.0] * 29


def test_recall_of_a_large_set_is_that_of_its_parts():
    g = torch.Generator().manual_seed(1)
    texts, images = torch.randn(50, 4, generator=g), torch.randn(50, 4, generator=g)
    keys = [str(k % 40) for k in range(50)]
    found = caption_recalls(texts, images, keys, among=17)
    for name, values in found.items():
        parts = [
            caption_recalls(texts[a:b], images[a:b], keys[a:b])[name]
            for a, b in ((0, 17), (17, 34), (34, 50))
        ]
        assert values.tolist() == torch.cat(parts).tolist()
    whole = caption_recalls(texts, images, keys)
    assert float(whole["recall_10"].mean()) < float(found["recall_10"].mean())
    assert caption_recalls(texts, images, keys, among=50)["recall_1"].tolist() == whole["recall_1"].tolist()


def test_bootstrap_holds_the_mean_and_narrows_with_queries():
    g = torch.Generator().manual_seed(0)
    few, many = torch.rand(20, generator=g), torch.rand(2000, generator=g)
    low, high = bootstrap(few)
    assert low < float(few.mean()) < high
    narrow = bootstrap(many)
    assert narrow[1] - narrow[0] < (high - low) / 5
    # 95 % of a mean's normal spread.
    mean, spread = float(many.mean()), float(many.std(correction=0)) / 2000**0.5
    assert narrow == pytest.approx((mean - 1.96 * spread, mean + 1.96 * spread), abs=0.15 * spread)
    assert bootstrap(few) == (low, high)
    assert bootstrap(few, seed=1) != (low, high)


def test_bootstrap_resamples_queries_and_averages_seeds():
    opposite = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    assert bootstrap(opposite) == (0.5, 0.5)
    assert bootstrap(torch.full((7,), 0.25)) == (0.25, 0.25)


def test_means_are_one_number_each():
    assert means({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0])}) == {"a": 1.5, "b": 5.0}
