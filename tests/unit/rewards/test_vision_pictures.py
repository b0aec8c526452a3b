import importlib.util
import pickle
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rewards import vision_pictures
from rewards.vision_heads import fit_head
from rewards.vision_pictures import SUBJECTS
from rewards.vision_pixels import pixel_features
from rlhf.errors import DataError, DependencyError
from rlhf.retrieval import RetrievalQuery

SPLITS = ("train", "validation", "test")
HAS_SKIMAGE = importlib.util.find_spec("skimage") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Photographs whose red says how far right a pixel stands, and whose green says which photograph it is."""
    root = tmp_path_factory.mktemp("photographs")
    for place, name in enumerate(SUBJECTS):
        height, width = 300, 400
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = np.linspace(0, 255, width)
        pixels[..., 1] = 16 * place
        pixels[..., 2] = 40 * (np.indices((height, width)).sum(0) // 8 % 2)
        Image.fromarray(pixels).save(root / name, quality=95)
    return str(root)


def test_a_crop_follows_from_its_id_alone(folder):
    gallery = vision_pictures.gallery("train", 5, 0, folder)
    first, second = gallery.ids()[:2]
    (alone,) = gallery.load([first])
    _, again = vision_pictures.gallery("test", 9, 4, folder).load([second, first])
    assert (alone.mode, alone.size, alone.info["id"]) == ("RGB", (64, 64), first)
    assert alone.tobytes() == again.tobytes()


def test_splits_see_different_parts_of_each_photograph(folder):
    spans = {}
    for split in SPLITS:
        gallery = vision_pictures.gallery(split, 400, 0, folder)
        clear = [name for name in gallery.ids() if min(vision_pictures.look_of(name).attributes[1:]) > 0.9]
        reds = np.stack([np.asarray(p)[..., 0].mean() for p in gallery.load(clear)])
        spans[split] = (reds.min() / 255, reds.max() / 255)
    assert spans["train"][1] < 0.5 < spans["validation"][0]
    assert spans["validation"][1] < 0.75 < spans["test"][0]


def test_queries_are_split_once():
    texts = {split: {query.text for query in vision_pictures.queries(split)} for split in SPLITS}
    assert [len(texts[split]) for split in SPLITS] == [9, 3, 3]
    assert not any(texts[a] & texts[b] for a, b in combinations(SPLITS, 2))
    assert set.union(*texts.values()) == set(SUBJECTS.values())


def test_truth_is_the_photograph_and_the_weighted_sum(folder):
    names = vision_pictures.gallery("test", 200, 0, folder).ids()
    (query,) = [q for q in vision_pictures.queries("validation") if q.text == "a cat"]
    relevant = vision_pictures.truth().relevant(query, names)
    assert relevant == [vision_pictures.look_of(name).file == "chelsea.png" for name in names]
    taste = vision_pictures.truth().taste(names)
    sharp, contrast, clean = vision_pictures.look_of(names[0]).attributes
    assert taste[0] == pytest.approx(10 * (0.4 * sharp + 0.3 * contrast + 0.3 * clean))
    assert 4 < np.mean(taste) < 6
    with pytest.raises(DataError, match="a dog"):
        vision_pictures.truth().relevant(RetrievalQuery(id="q", text="a dog"), names)


def test_captions_and_classes_agree():
    found = vision_pictures.captions("train", 300)
    assert all(caption.startswith(vision_pictures.look_of(name).text) for name, caption in found)
    words = [word for _, caption in found for word in ("sharp", "blurry") if word in caption.split()]
    assert len(words) / len(found) == pytest.approx(0.35, abs=0.1)
    classes = vision_pictures.zero_shot("test", 100)
    assert list(classes) == list(SUBJECTS.values())
    assert sum(map(len, classes.values())) == 100


def test_what_is_made_worse_shows_in_the_pixels(folder):
    gallery = vision_pictures.gallery("train", 400, 0, folder)
    features = pixel_features(gallery.load(gallery.ids()))
    taste = np.array(vision_pictures.truth().taste(gallery.ids()))
    head = fit_head(features[:300], taste[:300], ridge=10.0)
    assert np.corrcoef(features[300:] @ head.weight, taste[300:])[0, 1] > 0.7


def test_a_gallery_pickles_small(folder):
    gallery = vision_pictures.gallery("train", 50_000, 0, folder)
    assert len(pickle.dumps(gallery)) < 500
    assert pickle.loads(pickle.dumps(gallery)) == gallery
    assert gallery.version != vision_pictures.gallery("train", 50_000, 1, folder).version


@pytest.mark.skipif(HAS_SKIMAGE, reason="scikit-image is installed")
def test_without_scikit_image_it_says_what_to_install():
    with pytest.raises(DependencyError, match="pip install scikit-image"):
        vision_pictures.gallery("train", 5)


@pytest.mark.skipif(not HAS_SKIMAGE, reason="needs scikit-image")
def test_the_photographs_of_scikit_image_are_all_there():
    gallery = vision_pictures.gallery("test", 300)
    assert {vision_pictures.look_of(name).file for name in gallery.ids()} == set(SUBJECTS)
    assert len({picture.tobytes() for picture in gallery.load(gallery.ids())}) == 300


def test_a_folder_without_the_photographs_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"astronaut\.png"):
        vision_pictures.gallery("train", 5, folder=str(tmp_path))


def test_a_photograph_that_cannot_be_read_is_named(tmp_path):
    for name in SUBJECTS:
        Path(tmp_path, name).write_bytes(b"nothing")
    gallery = vision_pictures.gallery("train", 5, folder=str(tmp_path))
    with pytest.raises(DataError, match="cannot be read as a picture"):
        gallery.load(gallery.ids())


@pytest.mark.parametrize(
    "name", ["shapes-train-0-000001", "pictures-train-0", "pictures-dev-0-1", "pictures-train-x-1"]
)
def test_an_id_of_another_corpus_is_refused(name):
    with pytest.raises(DataError, match="pictures-SPLIT-SEED-NUMBER"):
        vision_pictures.look_of(name)


@pytest.mark.parametrize("settings", [("dev", 3, 0), ("train", 0, 0), ("train", 3, -1)])
def test_a_gallery_that_cannot_be_is_refused(settings, folder):
    with pytest.raises(DataError):
        vision_pictures.gallery(*settings, folder)
