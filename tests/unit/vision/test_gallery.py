"""The index: exact search in chunks, and what it refuses."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from rlhf.errors import CheckpointError, DataError
from rlhf.vision import gallery
from rlhf.vision.gallery import GalleryIndex, random_share


def index(number: int = 50, *, seed: int = 0, whole: bool = False) -> GalleryIndex:
    """Of random rows; `whole` numbers give equal cosines and no rounding."""
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randint(-2, 3, (number, 4), generator=g).float()
    if not whole:
        matrix = normalize(torch.randn(number, 4, generator=g), dim=1)
    return GalleryIndex(ids=tuple(f"i{k}" for k in range(number)), matrix=matrix, version=3)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    chunk=st.integers(1, 60),
    k=st.integers(1, 60),
    number=st.sampled_from([1, 7, 50]),
)
def test_search_in_chunks_equals_a_full_sort_with_ties_by_place(seed, chunk, k, number):
    found = index(number, seed=seed, whole=True)
    queries = torch.randint(-2, 3, (3, 4), generator=torch.Generator().manual_seed(seed + 1)).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "_CHUNK", chunk)
        cosines, places = found.search(queries, k)
    for row, query in enumerate(queries):
        scores = [sum(a * b for a, b in zip(r, query.tolist(), strict=True)) for r in found.matrix.tolist()]
        expected = sorted(range(number), key=lambda i: (-scores[i], i))[:k]
        assert places[row].tolist() == expected
        assert cosines[row].tolist() == [scores[i] for i in expected]


def test_search_of_unit_vectors_agrees_with_scores():
    found = index(200, seed=5)
    query = normalize(torch.ones(1, 4), dim=1)
    cosines, places = found.search(query, 200)
    assert sorted(places[0].tolist()) == list(range(200))
    torch.testing.assert_close(cosines[0], found.scores(query[0])[places[0]], rtol=0, atol=1e-6)


def test_rows_are_those_of_the_ids_asked_for():
    found = index()
    assert torch.equal(found.rows(["i7", "i0", "i7"]), found.matrix[[7, 0, 7]])


def test_an_embedding_that_is_no_number_is_named():
    matrix = index().matrix.clone()
    matrix[7, 2], matrix[9, 0] = torch.nan, torch.inf
    with pytest.raises(DataError, match=r"embedding of image 'i7' is not finite at weight version 3"):
        GalleryIndex(ids=index().ids, matrix=matrix, version=3)


def test_rows_and_ids_must_be_as_many():
    with pytest.raises(ValueError, match="matrix has 50 rows, expected one for each of 2 images"):
        GalleryIndex(ids=("a", "b"), matrix=index().matrix, version=0)


def test_an_index_comes_back_from_its_file(tmp_path: Path):
    made = index()
    made.save(tmp_path / "index.safetensors")
    found = GalleryIndex.load(tmp_path / "index.safetensors", ids=list(made.ids))
    assert torch.equal(found.matrix, made.matrix)
    assert (found.ids, found.version) == (made.ids, 3)
    assert torch.equal(found.rows(["i3"]), made.rows(["i3"]))


@pytest.mark.parametrize("change", ["other", "order", "more", "fewer"])
def test_the_index_of_another_gallery_is_refused(tmp_path: Path, change: str):
    made = index(4)
    made.save(tmp_path / "index.safetensors")
    ids = {
        "other": ["i0", "i1", "i2", "x"],
        "order": ["i1", "i0", "i2", "i3"],
        "more": ["i0", "i1", "i2", "i3", "i4"],
        "fewer": ["i0", "i1", "i2"],
    }[change]
    with pytest.raises(CheckpointError, match=rf"index of another gallery: it has 4 images, .* {len(ids)}"):
        GalleryIndex.load(tmp_path / "index.safetensors", ids=ids)


@pytest.mark.parametrize(("share", "expected"), [(0.25, 25), (0.001, 1), (0.999, 100), (1.0, 100)])
def test_a_share_is_as_large_as_asked_and_follows_from_the_seed(share: float, expected: int):
    first, second, other = (random_share(100, share, seed=s) for s in (1, 1, 2))
    assert int(first.sum()) == expected
    assert torch.equal(first, second)
    assert expected == 100 or not torch.equal(first, other)


def test_shares_over_many_visits_reach_every_image():
    visits = torch.stack([random_share(20, 0.5, seed=s) for s in range(400)]).double().mean(0)
    assert (visits - 0.5).abs().max() < 0.12
