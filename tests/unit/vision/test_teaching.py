"""Lists made at once from embeddings, and the panel of judges that teaches them."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch

from rlhf.config.alignment import OrdersConfig
from rlhf.errors import ConfigError, JudgeError
from rlhf.retrieval import RetrievalQuery
from rlhf.vision.gallery import GalleryIndex
from rlhf.vision.teaching import Constant, ListMaker, Panel, Reference, visits_of
from tests.retrievers import Brightness, Squares
from tests.unit.vision.facts import Counting, random_vectors

IDS = list(Squares(4).ids())


def panel(**keys: object) -> Panel:
    values = {"judges": {"one": Counting()}, "weights": {"one": 1.0}, "gallery": Squares(4)} | keys
    return Panel(**values)


@dataclass(frozen=True)
class Loading(Squares):
    """Remembers how many are loaded at one time."""

    sizes: list[int] = field(default_factory=list)

    def load(self, ids):
        self.sizes.append(len(ids))
        return super().load(ids)


def test_panel_remembers_scores_of_images():
    judge = Counting()
    found = panel(judges={"one": judge})
    first = found.scores("red", IDS[:4])
    again = found.scores("blue", IDS[6:1:-1])
    assert judge.asked == 7
    assert judge.queries == ["red"] * 4 + ["blue"] * 3
    fresh = panel().scores("green", IDS[:7])["one"]
    assert first["one"] == fresh[:4]
    assert again["one"] == fresh[6:1:-1]


def test_panel_remembers_nothing_where_a_judge_reads_the_query():
    class Reader(Counting):
        def score(self, images, queries=None):
            return [len(query) + score for score, query in zip(super().score(images), queries, strict=True)]

    judge = Reader(reads_query=True)
    found = panel(judges={"one": judge})
    short, long = (found.scores(query, IDS[:3])["one"] for query in ("red", "yellow"))
    assert judge.asked == 6
    assert [b - a for a, b in zip(short, long, strict=True)] == pytest.approx([3, 3, 3])


def test_judge_that_does_not_say_what_it_reads_is_asked_again():
    class Silent:
        name = "silent"
        version = "1"

        def score(self, images, queries=None):
            return [float(len(query)) for query in queries]

    found = panel(judges={"one": Silent()})
    assert [found.scores(query, IDS[:2])["one"] for query in ("red", "yellow")] == [(3.0, 3.0), (6.0, 6.0)]


def test_panel_asks_judges_of_many_images_in_parts():
    gallery = Loading(number=40)
    found = panel(gallery=gallery).scores("red", gallery.ids())["one"]
    assert gallery.sizes == [256, 64]
    assert found[:2] == panel(gallery=gallery).scores("red", gallery.ids()[:2])["one"]


def test_panel_refuses_a_score_that_is_no_number():
    found = panel(
        judges={"one": Brightness(), "two": Brightness(is_broken=True)}, weights={"one": 1, "two": 1}
    )
    with pytest.raises(JudgeError, match=rf"'brightness' scored image '{IDS[0]}' of query 'red' with nan"):
        found.scores("red", IDS[:2])


def test_panel_adds_weighted_z_scores():
    found = panel(judges={"one": Counting(), "two": Constant()}, weights={"one": 2.0, "two": 5.0})
    assert found.taste({"one": (1.0, 3.0), "two": (0.0, 0.0)}) == pytest.approx((-2.0, 2.0))
    with pytest.raises(ConfigError, match="weights are given for"):
        found.taste({"one": (1.0, 3.0)})


def test_constant_judge_has_no_taste():
    found = panel(judges={"constant": Constant()}, weights={"constant": 1.0})
    assert found.taste(found.scores("red", IDS[:3])) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("number", "count"), [(5, 23), (5, 5), (7, 3), (1, 4)])
def test_visits_pass_over_all_queries_before_any_comes_again(number, count):
    found = visits_of(number, count, seed=3)
    assert [index for index, _ in found] == list(range(count))
    places = [place for _, place in found]
    for start in range(0, count, number):
        whole = Counter(places[start : start + number])
        assert max(whole.values()) == 1
        assert set(whole) <= set(range(number))
    assert found == visits_of(number, count, seed=3)


def test_visits_of_another_seed_or_pass_come_in_another_order():
    first = [place for _, place in visits_of(8, 16, seed=0)]
    assert first[:8] != first[8:]
    assert first != [place for _, place in visits_of(8, 16, seed=1)]


def maker(config: OrdersConfig, judges: Panel | None = None) -> ListMaker:
    return ListMaker(
        queries=[RetrievalQuery(id=f"q{i}", text=f"query {i}") for i in range(2)],
        reference=Reference(
            index=GalleryIndex(ids=tuple(IDS), matrix=random_vectors(len(IDS), 8), version=0),
            queries=random_vectors(2, 8, seed=1),
            rephrased=random_vectors(2, 8, seed=2),
            scale=10.0,
        ),
        panel=judges or panel(),
        config=config,
        fingerprint="f",
    )


def test_list_follows_the_rephrased_text_down_and_the_judges_across():
    config = OrdersConfig(u=2, v=3, stride=1)
    made = maker(config).make([(0, 1), (1, 0)], seed=0)
    assert [order.query_id for order in made] == ["q1", "q0"]
    reference = maker(config).reference
    for place, order in ((1, made[0]), (0, made[1])):
        matrix = {name: reference.index.rows([name])[0] for name in order.items}
        semantic = [float(matrix[name] @ reference.rephrased[place]) for name in order.items]
        assert order.teacher["semantic"] == pytest.approx(semantic, abs=1e-6)
        assert min(semantic[:3]) >= max(semantic[3:])
        for row in (order.teacher["taste"][:3], order.teacher["taste"][3:]):
            assert all(a >= b for a, b in pairwise(row))
        cosines = [10 * float(matrix[name] @ reference.queries[place]) for name in order.items]
        assert order.ref_scores == pytest.approx(cosines, abs=1e-5)
        assert (order.fingerprint, order.version, order.shape) == ("f", 0, (2, 3))


def test_visits_to_a_query_retrieve_from_other_shares_of_the_gallery():
    config = OrdersConfig(u=2, v=3, stride=1, gallery_share=0.5)
    made = maker(config).make([(0, 0), (1, 0)], seed=0)
    assert set(made[0].items) != set(made[1].items)
    assert maker(config).make([(0, 0), (1, 0)], seed=0) == made


def test_where_nothing_can_be_preferred_there_is_no_list():
    few = OrdersConfig(u=5, v=7, stride=1, pool="plain", gallery_share=0.5)
    assert maker(few).make([(0, 0)], seed=0) == []
    blind = panel(judges={"constant": Constant()}, weights={"constant": 1.0})
    assert maker(OrdersConfig(u=1, v=4), blind).make([(0, 0)], seed=0) == []
    ordered = maker(OrdersConfig(u=4, v=1), blind).make([(0, 0)], seed=0)
    assert torch.tensor(ordered[0].teacher["semantic"]).diff().max() < 0
