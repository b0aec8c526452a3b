"""Ways to retrieve without training, against slow loops."""

from statistics import mean, pstdev

import pytest
import torch

from rlhf.vision.evaluate import Facts, measure_places
from rlhf.vision.untrained import Untrained, untrained_rows
from tests.unit.vision.facts import asked, facts, panel, random_vectors

DEPTHS = (4, 9, 500)
TOP_K = 3


def texts(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return random_vectors(4, 8, seed=seed), random_vectors(4, 8, seed=seed + 1)


def rows_of(of: Facts, seed: int = 1) -> dict[str, Untrained]:
    return untrained_rows(of, texts(seed), panel(of), DEPTHS, top_k=TOP_K)


def nearest(of: Facts, query: torch.Tensor, number: int) -> list[int]:
    cosines = [sum(a * b for a, b in zip(row, query.tolist(), strict=True)) for row in of.reference.tolist()]
    return sorted(range(len(cosines)), key=lambda place: -cosines[place])[:number]


def standard(scores: list[float]) -> list[float]:
    return [(score - mean(scores)) / pstdev(scores) for score in scores]


def slow_cascade(of: Facts, query: torch.Tensor, depth: int) -> list[int]:
    first = nearest(of, query, depth)
    ids = of.heldout.gallery.ids()
    pictures = of.heldout.gallery.load([ids[place] for place in first])
    judges = panel(of).judges
    red, blue = (standard(list(judges[name].score(pictures))) for name in ("red", "blue"))
    total = [r - 0.5 * b for r, b in zip(red, blue, strict=True)]
    order = sorted(range(len(first)), key=lambda i: -total[i])
    return [first[i] for i in order][:TOP_K]


@pytest.mark.parametrize("seed", [1, 7])
@pytest.mark.parametrize("depth", DEPTHS)
def test_cascade_equals_a_slow_one(depth, seed):
    of = facts()
    rows = rows_of(of, seed)
    for name, queries in zip((f"cascade {depth}", f"rephrase + cascade {depth}"), texts(seed), strict=True):
        assert rows[name].places.tolist() == [slow_cascade(of, query, depth) for query in queries]


def test_rows_without_scores_are_those_of_the_plain_and_of_the_other_texts():
    of = facts()
    rows = rows_of(of)
    plain, rephrased = texts()
    assert rows["pre-trained"].places.tolist() == [nearest(of, query, TOP_K) for query in plain]
    assert rows["+ rephrase"].places.tolist() == [nearest(of, query, TOP_K) for query in rephrased]
    assert rows["pre-trained"].places.tolist() != rows["+ rephrase"].places.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_oracle_bounds_relevance_times_taste(seed):
    of = facts(seed=seed)
    rows = rows_of(of, seed)
    gain = of.relevant * (of.taste - of.taste.min() + 1)

    def gained(places: torch.Tensor) -> torch.Tensor:
        return gain.gather(1, places).sum(1)

    best = gained(rows["oracle"].places)
    draw = torch.Generator().manual_seed(seed)
    shuffled = torch.rand(200, *gain.shape, generator=draw).argsort(2)[..., :TOP_K]
    others = [found.places for found in rows.values()] + list(shuffled)
    assert all((gained(places) <= best).all() for places in others)
    assert measure_places(of, rows["oracle"].places)["ndcg"].tolist() == pytest.approx([1.0] * 4)


def test_rows_say_what_a_query_calls():
    rows = rows_of(facts())
    assert {name: (found.calls, found.depth) for name, found in rows.items()} == {
        "pre-trained": ("0", None),
        "+ rephrase": ("1 LLM", None),
        **{f"cascade {depth}": (f"{depth} scores", depth) for depth in DEPTHS},
        **{f"rephrase + cascade {depth}": (f"1 LLM, {depth} scores", depth) for depth in DEPTHS},
        "oracle": ("-", None),
    }
    assert all(found.places.shape == (4, TOP_K) for found in rows.values())


def test_cascades_score_an_image_once():
    of = facts()
    judges = panel(of)
    untrained_rows(of, texts(), judges, DEPTHS, top_k=TOP_K)
    assert asked(judges) == 2 * len(of.heldout.gallery.ids())
