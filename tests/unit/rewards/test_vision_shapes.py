import pickle
from itertools import combinations

import numpy as np
import pytest

from rewards import vision_shapes
from rewards.vision_shapes import ATTRIBUTES, HUES, SHAPES, WEIGHTS, WORDS
from rlhf.errors import DataError
from rlhf.retrieval import RetrievalQuery

SPLITS = ("train", "validation", "test")
PINNED = {
    "shapes-train-0-000000": (
        "a pink ring",
        [0.3694045, 0.0839983, 0.8075437, 0.0664353, 0.0475816],
        [62.1, 115.6, 84.2, 82.9, 104.0, 91.2, 63.3, 115.1, 84.8, 87.1, 101.3, 93.1],
    ),
    "shapes-test-7-000123": (
        "a pink star",
        [0.4593949, 0.9070821, 0.5525097, 0.4053854, 0.7705185],
        [71.4, 76.5, 71.8, 103.3, 68.5, 88.8, 68.0, 77.9, 72.0, 82.5, 74.4, 78.8],
    ),
}
"""Colour and shape, attributes and quarter means: whoever changes them gives vision_shapes another VERSION."""


def quarters(name: str) -> list[float]:
    pixels = np.asarray(vision_shapes.draw(name), np.float64)
    return pixels.reshape(2, 16, 2, 16, 3).mean((1, 3)).ravel().tolist()


def ids(size: int, split: str = "train", seed: int = 0) -> list[str]:
    return vision_shapes.gallery(split, size, seed).ids()


@pytest.mark.parametrize("name", PINNED)
def test_an_id_shows_what_it_always_showed(name):
    text, attributes, means = PINNED[name]
    assert vision_shapes.look_of(name).text == text
    assert vision_shapes.look_of(name).attributes == pytest.approx(attributes, abs=1e-6)
    assert quarters(name) == pytest.approx(means, abs=1.5)


def test_a_picture_follows_from_its_id_alone():
    first, other = "shapes-train-0-000003", "shapes-train-0-000004"
    (alone,) = vision_shapes.gallery("train", 4).load([first])
    _, again = vision_shapes.gallery("test", 9, 5).load([other, first])
    assert (alone.mode, alone.size, alone.info["id"]) == ("RGB", (32, 32), first)
    assert alone.tobytes() == again.tobytes()


def test_galleries_of_different_splits_and_seeds_share_no_picture():
    galleries = [vision_shapes.gallery(split, 50, seed) for split in SPLITS for seed in (0, 1)]
    names = [name for gallery in galleries for name in gallery.ids()]
    pixels = {picture.tobytes() for gallery in galleries for picture in gallery.load(gallery.ids())}
    assert len(set(names)) == len(pixels) == 300
    assert len({gallery.version for gallery in galleries}) == 6


def test_a_larger_gallery_holds_the_smaller_one():
    assert ids(50)[:20] == ids(20)
    assert vision_shapes.gallery("train", 50).version != vision_shapes.gallery("train", 20).version


def test_a_gallery_pickles_without_pixels():
    gallery = vision_shapes.gallery("train", 100_000)
    assert len(pickle.dumps(gallery)) < 300
    assert pickle.loads(pickle.dumps(gallery)) == gallery


def test_queries_are_split_once_and_each_split_knows_every_shape_and_colour():
    texts = {split: {query.text for query in vision_shapes.queries(split)} for split in SPLITS}
    assert {split: len(found) for split, found in texts.items()} == {
        "train": 36,
        "validation": 12,
        "test": 16,
    }
    assert not any(texts[a] & texts[b] for a, b in combinations(SPLITS, 2))
    assert set.union(*texts.values()) == set(vision_shapes.classes())
    for found in texts.values():
        assert {text.split()[1] for text in found} == set(HUES)
        assert {text.split()[2] for text in found} == set(SHAPES)


def test_attributes_are_even_and_independent():
    values = vision_shapes.attributes(ids(4000))
    assert values.mean(0) == pytest.approx([0.5] * 5, abs=0.02)
    assert np.quantile(values, [0.1, 0.9], axis=0) == pytest.approx(
        np.array([[0.1] * 5, [0.9] * 5]), abs=0.02
    )
    assert np.abs(np.corrcoef(values.T) - np.eye(5)).max() < 0.05


def test_every_class_is_about_as_frequent():
    counts = np.bincount(vision_shapes.labels(ids(6400)), minlength=64)
    assert 60 < counts.min() < counts.max() < 145


def test_the_human_score_is_the_weighted_sum():
    values = vision_shapes.attributes(ids(5))
    expected = [10 * sum(w * a for w, a in zip(WEIGHTS, row, strict=True)) for row in values]
    assert vision_shapes.truth().taste(ids(5)) == pytest.approx(expected)
    assert sum(WEIGHTS) == pytest.approx(1)


def test_truth_knows_which_pictures_answer_a_query():
    names = ids(2000)
    (query,) = [q for q in vision_shapes.queries("test") if q.text == "a red circle"]
    relevant = vision_shapes.truth().relevant(query, names)
    assert relevant == [
        label == vision_shapes.classes().index("a red circle") for label in vision_shapes.labels(names)
    ]
    assert 10 < sum(relevant) < 60


def test_truth_refuses_a_query_of_another_world():
    with pytest.raises(DataError, match="'a red cat'"):
        vision_shapes.truth().relevant(RetrievalQuery(id="q", text="a red cat"), ids(1))


def test_captions_name_each_attribute_in_a_third_of_the_pictures():
    found = vision_shapes.captions("train", 4000)
    names = [name for name, _ in found]
    assert len(set(names)) == 4000
    values = vision_shapes.attributes(names)
    for column, (high, low) in enumerate(WORDS):
        said_high = np.array([high in caption.split()[3:] for _, caption in found])
        said_low = np.array([low in caption.split()[3:] for _, caption in found])
        assert (said_high | said_low).mean() == pytest.approx(0.35, abs=0.03)
        assert values[said_high, column].min() >= 0.5
        assert values[said_low, column].max() < 0.5
    texts = vision_shapes.classes()
    assert all(
        caption.startswith(texts[label])
        for (_, caption), label in zip(found, vision_shapes.labels(names), strict=True)
    )


def test_zero_shot_holds_every_picture_under_its_text():
    found = vision_shapes.zero_shot("test", 200)
    assert list(found) == vision_shapes.classes()
    assert sorted(name for names in found.values() for name in names) == ids(200, "test", 2)
    assert all(vision_shapes.look_of(name).text == text for text, names in found.items() for name in names)


@pytest.mark.parametrize(
    ("attribute", "statistic"), [("sharp", "edges"), ("contrast", "spread"), ("clean", "grain")]
)
def test_low_level_attributes_show_in_the_pixels(attribute, statistic):
    names = ids(700)
    pixels = np.stack(
        [np.asarray(p, np.float64).mean(2) for p in vision_shapes.gallery("train", 1).load(names)]
    )
    values = vision_shapes.attributes(names)[:, ATTRIBUTES.index(attribute)]
    # Grain hides edges, so they are looked for where there is little.
    kept = vision_shapes.attributes(names)[:, ATTRIBUTES.index("clean")] > 0.8
    measured = {
        "edges": np.abs(np.diff(pixels, axis=2)).max((1, 2))[kept],
        "spread": pixels.std((1, 2))[kept],
        "grain": -pixels[:, :3, :3].std((1, 2)),
    }[statistic]
    assert np.corrcoef(measured, values if statistic == "grain" else values[kept])[0, 1] > 0.4


def test_centred_shapes_lie_in_the_middle():
    names = [n for n in ids(3000) if (a := vision_shapes.look_of(n).attributes)[2] > 0.8 and a[1] > 0.5]
    centred = vision_shapes.attributes(names)[:, ATTRIBUTES.index("centred")]
    distances = []
    for picture in vision_shapes.gallery("train", 1).load(names):
        pixels = np.asarray(picture, np.float64)
        weight = np.abs(pixels - np.median(pixels, axis=(0, 1))).sum(2) ** 2
        rows, columns = np.mgrid[:32, :32] - 15.5
        distances.append(np.hypot((rows * weight).sum(), (columns * weight).sum()) / weight.sum())
    assert np.corrcoef(distances, centred)[0, 1] < -0.9


@pytest.mark.parametrize(
    "name", ["shapes-train-0", "shapes-dev-0-1", "pictures-train-0-1", "shapes-train-0-x", "", "a.png"]
)
def test_an_id_of_another_world_is_refused(name):
    with pytest.raises(DataError, match="shapes-SPLIT-SEED-NUMBER"):
        vision_shapes.draw(name)


@pytest.mark.parametrize("settings", [("dev", 3, 0), ("train", 0, 0), ("train", 3, -1)])
def test_a_gallery_that_cannot_be_is_refused(settings):
    with pytest.raises(DataError):
        vision_shapes.gallery(*settings)
