"""One evaluation against slow loops, and how it is put together."""

import math
from dataclasses import replace
from itertools import combinations
from statistics import mean

import pytest
import torch

from rlhf.errors import DataError
from rlhf.retrieval import RetrievalQuery
from rlhf.vision.evaluate import Embeddings, Facts, abilities, embedded, known, measure, measure_places
from tests.retrievers import Squares, SquaresTruth
from tests.unit.vision.facts import facts, heldout, random_vectors


def found_for(of: Facts, seed: int) -> Embeddings:
    texts, images = of.wanted.texts, of.wanted.images
    return embedded(
        of, random_vectors(len(texts), 8, seed=seed + 100), random_vectors(len(images), 8, seed=seed + 200)
    )


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def slow_answers(of: Facts, found: Embeddings, top_k: int) -> dict[str, list[float]]:
    measured: dict[str, list[float]] = {name: [] for name in ("taste", "precision", "ndcg", "diversity")}
    taste, floor = of.taste.tolist(), min(of.taste.tolist())
    for query, relevant in zip(found.queries, of.relevant.tolist(), strict=True):
        cosines = [dot(query, image) for image in found.gallery]
        first = sorted(range(len(cosines)), key=lambda place: -cosines[place])[:top_k]
        gains = [(taste[place] - floor) * relevant[place] for place in range(len(taste))]
        discounted = [gains[place] / math.log2(i + 2) for i, place in enumerate(first)]
        ideal = [gain / math.log2(i + 2) for i, gain in enumerate(sorted(gains, reverse=True)[:top_k])]
        pairs = [1 - dot(of.reference[a], of.reference[b]) for a, b in combinations(first, 2)]
        measured["taste"].append(mean(taste[place] for place in first))
        measured["precision"].append(mean(float(relevant[place]) for place in first))
        measured["ndcg"].append(sum(discounted) / sum(ideal) if sum(ideal) else 0.0)
        measured["diversity"].append(mean(pairs))
    return measured


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top_k", [2, 5])
def test_measures_equal_slow_loops(seed, top_k):
    of = facts(seed=seed)
    found = found_for(of, seed)
    measured = measure(of, found, top_k=top_k)
    for name, values in slow_answers(of, found, top_k).items():
        assert measured[name].tolist() == pytest.approx(values, abs=1e-5), name
    names = list(of.heldout.classes)
    pictured = [name for name, images in of.heldout.classes.items() for _ in images]
    nearest = [
        names[max(range(len(names)), key=lambda i, p=picture: dot(p, found.class_texts[i]))]
        for picture in found.class_images
    ]
    expected = [float(a == b) for a, b in zip(nearest, pictured, strict=True)]
    assert measured["zero_shot"].tolist() == expected


def test_retrieval_by_other_means_is_measured_alike():
    of = facts()
    found = found_for(of, 0)
    measured = measure(of, found, top_k=3)
    places = (found.queries @ found.gallery.T).topk(3, dim=1).indices
    assert {n: v.tolist() for n, v in (measure_places(of, places) | abilities(of, found)).items()} == {
        n: v.tolist() for n, v in measured.items()
    }


def test_what_is_wanted_is_cut_into_the_same_parts_again():
    of = facts()
    texts = {text: random_vectors(8, seed=i) for i, text in enumerate(dict.fromkeys(of.wanted.texts))}
    images = {name: random_vectors(8, seed=900 + i) for i, name in enumerate(dict.fromkeys(of.wanted.images))}
    found = embedded(
        of,
        torch.stack([texts[text] for text in of.wanted.texts]),
        torch.stack([images[name] for name in of.wanted.images]),
    )
    expected = {
        "queries": [texts[query.text] for query in of.heldout.queries],
        "gallery": [images[name] for name in of.heldout.gallery.ids()],
        "caption_texts": [texts[text] for _, text in of.heldout.captions],
        "caption_images": [images[name] for name, _ in of.heldout.captions],
        "class_texts": [texts[text] for text in of.heldout.classes],
        "class_images": [images[name] for names in of.heldout.classes.values() for name in names],
    }
    for name, rows in expected.items():
        assert torch.equal(getattr(found, name), torch.stack(rows)), name


def test_nothing_is_said_of_abilities_that_are_not_measured():
    bare = replace(heldout(), captions=(), classes={})
    of = known(bare, random_vectors(len(bare.gallery.ids()), 8))
    measured = measure(of, found_for(of, 0), top_k=3)
    assert measured.keys() == {"taste", "precision", "ndcg", "diversity"}


def test_without_a_truth_relevance_is_what_queries_say():
    queries = [
        RetrievalQuery(id="a", text="a", relevant=("red-dark-0", "nowhere")),
        RetrievalQuery(id="b", text="b"),
    ]
    bare = replace(heldout(), truth=None, queries=queries)
    ids = list(bare.gallery.ids())
    of = known(bare, random_vectors(len(ids), 8))
    assert [[ids[i] for i, hit in enumerate(row) if hit] for row in of.relevant.tolist()] == [
        ["red-dark-0"],
        [],
    ]
    assert of.taste.tolist() == [0.0] * len(ids)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_taste_that_is_no_number_is_refused(value):
    class Broken(SquaresTruth):
        def taste(self, ids):
            return [*super().taste(ids[1:]), value]

    held = replace(heldout(), truth=Broken())
    with pytest.raises(DataError, match=r"eval\.truth gives a taste that is not finite"):
        known(held, random_vectors(len(Squares(4).ids()), 8))
