"""Picking, arranging and keeping partial orders."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.config.alignment import OrdersConfig
from rlhf.errors import DataError, StaleError
from rlhf.retrieval import PartialOrder, RetrievalQuery
from rlhf.vision.gallery import GalleryIndex, random_share
from rlhf.vision.orders import (
    SEMANTIC,
    TASTE,
    Judged,
    arrange,
    fingerprint_of,
    pick,
    read_orders,
    reference_scores,
    refuse_stale,
    visit_seed,
    write_orders,
)
from tests.unit.vision.recipes import orders

QUERY = RetrievalQuery(id="q0", text="a red square")


def config(u: int = 2, v: int = 3, **more) -> OrdersConfig:
    return OrdersConfig(u=u, v=v, **more)


def cosines(seed: int, number: int = 40) -> torch.Tensor:
    return torch.randn(number, generator=torch.Generator().manual_seed(seed)).tanh()


def best(values: Sequence[float], number: int) -> list[int]:
    return sorted(range(len(values)), key=lambda k: -values[k])[:number]


def slow_pool(plain: torch.Tensor, rephrased: torch.Tensor, kind: str, depth: int) -> list[int]:
    """Places retrieved by the texts of a pool, in the order of its teacher."""
    texts = {"plain": [plain], "rephrased": [rephrased], "union": [plain, rephrased]}[kind]
    teacher = (plain if kind == "plain" else rephrased).tolist()
    found = {place for text in texts for place in best(text.tolist(), depth)}
    return sorted(found, key=lambda k: -teacher[k])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_every_stride_th_image_is_picked_in_semantic_order(stride):
    plain = cosines(1)
    found = pick(plain, plain, config(stride=stride), seed=0)
    expected = best(plain.tolist(), 6 * stride)[::stride]
    assert found.places.tolist() == expected
    assert found.semantic == pytest.approx([plain[k].item() for k in expected])


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("kind", ["plain", "rephrased", "union"])
def test_images_come_from_the_pool_of_its_texts_spread_over_all_of_it(kind, seed):
    plain, rephrased = cosines(2), cosines(3)
    found = pick(plain, rephrased, config(pool=kind), seed=seed)
    pool = slow_pool(plain, rephrased, kind, 12)
    places = [pool.index(k) for k in found.places.tolist()]
    assert len(places) == 6
    assert all(b > a for a, b in pairwise(places))
    step = len(pool) / 6
    assert all(i * step - 1 < place < (i + 1) * step for i, place in enumerate(places))
    teacher = plain if kind == "plain" else rephrased
    assert found.semantic == pytest.approx([teacher[k].item() for k in found.places.tolist()])


def test_union_holds_what_only_the_plain_query_likes():
    plain, rephrased = cosines(2), cosines(3)
    both = set(pick(plain, rephrased, config(u=4, v=3, stride=1, pool="union"), seed=0).places.tolist())
    of_rephrased = set(best(rephrased.tolist(), 12))
    assert both & of_rephrased
    assert both - of_rephrased


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_a_visit_retrieves_from_its_share_of_the_gallery_alone(seed):
    plain = cosines(4, 200)
    shared = config(gallery_share=0.25)
    found = pick(plain, plain, shared, seed=seed)
    share = random_share(200, 0.25, seed=seed)
    allowed = share.nonzero().squeeze(1).tolist()
    assert len(allowed) == 50
    retrieved = sorted(allowed, key=lambda k: -plain[k].item())[:12]
    assert set(found.places.tolist()) <= set(retrieved)
    assert torch.equal(pick(plain, plain, shared, seed=seed).places, found.places)


def test_visits_differ_by_seed_and_seeds_follow_from_what_is_visited():
    plain = cosines(4, 200)
    seeds = [visit_seed(1, query, index) for query in ("q0", "q1") for index in range(5)]
    assert len(set(seeds)) == 10
    assert seeds == [visit_seed(1, query, index) for query in ("q0", "q1") for index in range(5)]
    assert visit_seed(2, "q0", 0) != visit_seed(1, "q0", 0)
    lists = {tuple(pick(plain, plain, config(gallery_share=0.5), seed=s).places.tolist()) for s in seeds}
    assert len(lists) == 10


def test_too_small_a_share_gives_no_list():
    assert pick(cosines(5, 20), cosines(5, 20), config(gallery_share=0.25), seed=0) is None
    assert pick(cosines(5, 5), cosines(5, 5), config(), seed=0) is None
    assert pick(cosines(5, 6), cosines(5, 6), config(), seed=3).places.numel() == 6


def judged(semantic: Sequence[float], taste: Sequence[float], **judges: Sequence[float]) -> Judged:
    number = len(semantic)
    return Judged(
        items=tuple(f"i{k}" for k in range(number)),
        semantic=tuple(semantic),
        taste=tuple(taste),
        judges={name: tuple(scores) for name, scores in judges.items()},
        ref_scores=tuple(float(10 + k) for k in range(number)),
    )


def test_rows_follow_meaning_and_places_within_a_row_taste():
    what = judged([6, 5, 4, 3, 2, 1], [0.1, 0.9, 0.5, 0.3, 0.2, 0.8], sharp=range(6))
    order = arrange(QUERY, what, config(), version=4, fingerprint="f")
    assert order.items == ("i1", "i2", "i0", "i5", "i3", "i4")
    assert order.shape == (2, 3)
    assert order.pairs is None
    assert order.ref_scores == (11, 12, 10, 15, 13, 14)
    assert order.teacher == {
        SEMANTIC: (5, 4, 6, 1, 3, 2),
        TASTE: (0.9, 0.5, 0.1, 0.8, 0.3, 0.2),
        "sharp": (1, 2, 0, 5, 3, 4),
    }
    assert (order.query_id, order.query, order.version, order.fingerprint) == ("q0", "a red square", 4, "f")


def test_what_a_teacher_holds_equal_is_no_pair():
    order = arrange(
        QUERY, judged([4, 3, 2, 1], [0.5, 0.5, 0.2, 0.7]), config(2, 2), version=0, fingerprint=""
    )
    assert order.items == ("i0", "i1", "i3", "i2")
    assert set(order.pairs) == {(2, 3), (0, 2), (1, 3)}
    order = arrange(
        QUERY, judged([2, 2, 2, 1], [0.9, 0.1, 0.2, 0.7]), config(2, 2), version=0, fingerprint=""
    )
    assert order.items == ("i0", "i1", "i3", "i2")
    assert set(order.pairs) == {(0, 1), (2, 3), (0, 2)}


def test_teachers_that_prefer_nothing_give_no_list():
    assert arrange(QUERY, judged([1] * 6, [2] * 6), config(), version=0, fingerprint="") is None
    only_meaning = arrange(QUERY, judged([2, 1], [5, 5]), config(2, 1), version=0, fingerprint="")
    assert only_meaning.pairs is None


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), u=st.integers(1, 4), v=st.integers(1, 4))
def test_pairs_are_those_where_the_teacher_of_the_line_is_strict(seed, u, v):
    if u * v < 2:
        return
    g = torch.Generator().manual_seed(seed)
    semantic = sorted(torch.randint(0, 5, (u * v,), generator=g).tolist(), reverse=True)
    taste = torch.randint(0, 4, (u * v,), generator=g).tolist()
    order = arrange(QUERY, judged(semantic, taste), config(u, v), version=0, fingerprint="")
    expected = set()
    if order is None:
        assert len(set(semantic[::v])) == 1 or u == 1
        return
    meaning, liking = order.teacher[SEMANTIC], order.teacher[TASTE]
    for a in range(u * v):
        for b in range(u * v):
            if a // v == b // v and liking[a] > liking[b]:
                expected.add((a, b))
            if a // v != b // v and a % v == b % v and meaning[a] > meaning[b]:
                expected.add((a, b))
    everything = u * v * (v - 1) // 2 + v * u * (u - 1) // 2
    found = order.pairs
    assert len(expected) == everything if found is None else set(found) == expected
    for row in range(u):
        assert list(liking[row * v : row * v + v]) == sorted(liking[row * v : row * v + v], reverse=True)


def test_lists_of_this_run_are_taken():
    made = [replace(order, fingerprint="mine", version=3) for order in orders(3)]
    refuse_stale(made, fingerprint="mine")
    refuse_stale(made, fingerprint="mine", oldest=3)


def test_a_list_that_others_made_is_refused_by_query():
    made = [replace(o, fingerprint="mine" if i != 1 else "other") for i, o in enumerate(orders(3))]
    with pytest.raises(
        StaleError, match=r"query 'q1' has the fingerprint 'other', this run has 'mine'.*Nothing was"
    ):
        refuse_stale(made, fingerprint="mine")


def test_a_list_of_too_old_weights_is_refused_by_query():
    made = [replace(o, version=5 - i) for i, o in enumerate(orders(3))]
    with pytest.raises(
        StaleError, match=r"query 'q2' was retrieved at weight version 3, before 4.*Nothing was"
    ):
        refuse_stale(made, fingerprint="", oldest=4)


def test_fingerprints_tell_every_part_apart():
    first = fingerprint_of(model="m", gallery="g", orders={"u": 5, "v": 4})
    assert first == fingerprint_of(orders={"v": 4, "u": 5}, gallery="g", model="m")
    others = [
        fingerprint_of(model="n", gallery="g", orders={"u": 5, "v": 4}),
        fingerprint_of(model="m", gallery="h", orders={"u": 5, "v": 4}),
        fingerprint_of(model="m", gallery="g", orders={"u": 4, "v": 5}),
        fingerprint_of(model="g", gallery="m", orders={"u": 5, "v": 4}),
    ]
    assert len({first, *others}) == 5
    assert len(first) == 16


def test_lists_come_back_from_their_file_as_they_were(tmp_path: Path):
    made = [replace(o, fingerprint="f", version=i) for i, o in enumerate(orders(4, tied=[2]))]
    file = tmp_path / "deep" / "orders.jsonl"
    write_orders(file, made)
    assert read_orders(file) == made
    assert [path.name for path in file.parent.iterdir()] == ["orders.jsonl"]


def line(**changes: object) -> str:
    raw = {"query_id": "q", "query": "red", "items": ["a", "b"], "shape": [1, 2], "ref_scores": [1.0, 2.0]}
    return json.dumps(
        {name: value for name, value in (raw | {"teacher": {}} | changes).items() if value != ...}
    )


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "Expecting"),
        ("", "Expecting value"),
        ("[1]", ""),
        (line(items=["a", "b", "c"]), "has 3 items, expected 1 x 2 of its shape"),
        (line(items=["a", "a"]), "holds an image twice"),
        (line(ref_scores=[1.0]), "ref_scores has 1 scores, expected 2"),
        (line(ref_scores=[1.0, float("nan")]), "ref_scores holds a score that is not finite"),
        (line(teacher={"sharp": [1.0]}), "sharp has 1 scores"),
        (line(teacher=None), "no attribute 'items'"),
        (line(teacher=...), "teacher"),
        (line(query=...), "query"),
        (line(shape=[2]), "unpack"),
        (line(colour="red"), "colour"),
        (line(pairs=[[0]]), "unpack"),
        (line(pairs=[]), "pairs is empty"),
        (line(pairs=[[0, 2]]), r"pairs has \(0, 2\), expected two places from 0 to 1"),
        (line(pairs=[[1, 1]]), r"pairs has \(1, 1\)"),
    ],
)
def test_a_line_that_is_no_list_is_named(tmp_path: Path, bad: str, says: str):
    file = tmp_path / "orders.jsonl"
    file.write_text(f"{line()}\n{bad}\n{line()}\n")
    with pytest.raises(
        DataError, match=rf"orders\.path: .*orders\.jsonl, line 2 is no partial order: .*{says}"
    ):
        read_orders(file)


def test_files_without_lists_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"orders\.path: .*none\.jsonl' cannot be read .*build-orders"):
        read_orders(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl' holds no list"):
        read_orders(tmp_path / "empty.jsonl")
    (tmp_path / "picture.jsonl").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match=r"picture\.jsonl' cannot be read"):
        read_orders(tmp_path / "picture.jsonl")


def test_pairs_of_a_record_must_be_of_its_places():
    with pytest.raises(ValueError, match=r"query 'q0': pairs has \(0, 6\), expected two places from 0 to 5"):
        replace(orders(1)[0], pairs=((0, 1), (0, 6)))
    with pytest.raises(ValueError, match="query 'q0': pairs is empty"):
        replace(orders(1)[0], pairs=())
    assert isinstance(replace(orders(1)[0], pairs=((5, 0),)), PartialOrder)


def test_reference_scores_are_scaled_cosines():
    index = GalleryIndex(ids=("a", "b", "c"), matrix=torch.eye(3), version=0)
    found = reference_scores(index, torch.tensor([0.6, 0.8, 0.0]), torch.tensor([2, 0, 1]), scale=10.0)
    assert found == pytest.approx((0.0, 6.0, 8.0))
