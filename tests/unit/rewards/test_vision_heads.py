import pickle
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from rewards import vision_shapes
from rewards.vision_heads import LinearHead, collapse, fit_head, load_head, low_level
from rewards.vision_pixels import pixel_features
from rlhf.errors import ConfigError, DataError, LoadError

MEAN_COLOUR = "tests.unit.rewards.image_embeddings:mean_colour"
RANDOM = np.random.default_rng(0)


def made_rows(num: int = 200) -> tuple[np.ndarray, np.ndarray]:
    features = RANDOM.normal(size=(num, 4)) * [1, 10, 0.1, 1] + [0, 5, 0, 3]
    return features, features @ [2.0, -0.3, 5.0, 0.0] + 7.0


def made_stack(*widths: int) -> dict[str, np.ndarray]:
    """Layers with the numbers that LAION's have: dropout takes every second one."""
    stack = {}
    for number, (before, after) in enumerate(pairwise(widths)):
        stack[f"layers.{2 * number}.weight"] = RANDOM.normal(size=(after, before)).astype(np.float32)
        stack[f"layers.{2 * number}.bias"] = RANDOM.normal(size=after).astype(np.float32)
    return stack


def through(stack: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    for key in sorted((k for k in stack if k.endswith("weight")), key=lambda k: int(k.split(".")[1])):
        rows = rows @ stack[key].T.astype(np.float64) + stack[key.replace("weight", "bias")]
    return rows[:, 0]


def test_without_a_penalty_the_fit_is_least_squares():
    features, ratings = made_rows()
    head = fit_head(features, ratings, ridge=0.0)
    assert head.weight == pytest.approx([2.0, -0.3, 5.0, 0.0], abs=1e-9)
    assert head.bias == pytest.approx(7.0)


def test_the_fit_is_the_closed_form_of_ridge_on_standardised_features():
    features, ratings = made_rows()
    ratings = ratings + RANDOM.normal(size=len(ratings))
    standard = (features - features.mean(0)) / features.std(0)
    slopes = np.linalg.solve(standard.T @ standard + 50 * np.eye(4), standard.T @ (ratings - ratings.mean()))
    expected = standard @ slopes + ratings.mean()
    head = fit_head(features, ratings, ridge=50.0)
    assert features @ head.weight + head.bias == pytest.approx(expected)


def test_a_feature_that_never_changes_gets_no_weight():
    features, ratings = made_rows()
    features[:, 3] = 0.1 + 0.2
    assert fit_head(features, ratings).weight[3] == 0.0


@pytest.mark.parametrize(
    ("features", "ratings", "named"),
    [
        (np.zeros((3, 2)), [1, 2], "3, 2"),
        (np.zeros(3), [1, 2, 3], "(3,)"),
        (np.zeros((1, 2)), [1], "2 rows"),
        (np.array([[1.0], [np.nan], [2.0]]), [1, 2, 3], "row 1 has a feature"),
        (np.array([[1.0], [3.0], [2.0]]), [1, 2, np.inf], "row 2 has a rating"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused(features, ratings, named):
    with pytest.raises(DataError) as error:
        fit_head(features, ratings)
    assert named in str(error.value)


def test_low_level_knows_the_surface_and_no_composition():
    judge = low_level()
    gallery = vision_shapes.gallery("test", 1200, 0)
    scores = judge.score(gallery.load(gallery.ids()))
    values = vision_shapes.attributes(gallery.ids())

    def correlation(with_what: np.ndarray) -> float:
        return float(np.corrcoef(scores, with_what)[0, 1])

    assert 0.5 < correlation(vision_shapes.human_scores(gallery.ids())) < 0.7
    assert correlation(vision_shapes.low_level_scores(gallery.ids())) > 0.85
    assert abs(correlation(values[:, 3:] @ vision_shapes.WEIGHTS[3:])) < 0.1


def test_low_level_is_the_same_in_every_process_and_small():
    judge = low_level(size=300)
    assert low_level(size=300).version == judge.version
    assert low_level(size=300, noise=2.0).version != judge.version
    assert len(pickle.dumps(judge)) < 1500
    images = vision_shapes.gallery("test", 3).load(vision_shapes.gallery("test", 3).ids())
    assert pickle.loads(pickle.dumps(judge)).score(images) == judge.score(images)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_head_comes_back_as_it_was_saved(tmp_path, suffix):
    features, ratings = made_rows()
    head = fit_head(features[:, :3], ratings, embedding=MEAN_COLOUR, normalise=True)
    head.save(tmp_path / f"head.{suffix}")
    found = load_head(str(tmp_path / f"head.{suffix}"))
    assert found.weight == pytest.approx(head.weight, abs=0)
    assert (found.bias, found.embedding, found.normalise) == (head.bias, MEAN_COLOUR, True)
    assert found.version == head.version


def test_a_stack_of_linear_layers_is_one_linear_map(tmp_path):
    stack = made_stack(768, 1024, 128, 64, 16, 1)
    save_file(stack, tmp_path / "laion.safetensors")
    head = load_head(str(tmp_path / "laion.safetensors"), embedding="my.clip:embed", normalise=True)
    rows = RANDOM.normal(size=(20, 768))
    assert rows @ head.weight + head.bias == pytest.approx(through(stack, rows), rel=1e-9)
    assert (head.name, head.normalise) == ("laion", True)


def test_layers_follow_by_number_not_by_spelling():
    stack = {f"layers.{number}.weight": np.array([[2.0]]) for number in (0, 2, 4, 6, 8)}
    stack["layers.10.weight"], stack["layers.10.bias"] = np.array([[1.0]]), np.array([5.0])
    weight, bias = collapse(stack)
    assert (weight.tolist(), bias) == ([32.0], 5.0)


def test_one_linear_layer_is_a_head_too():
    weight, bias = collapse({"weight": np.array([[1.0, 2.0]]), "bias": np.array([3.0])})
    assert (weight.tolist(), bias) == ([1.0, 2.0], 3.0)


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({}, "nothing"),
        ({"layers.0.weight": np.ones((2, 3))}, "gives 2 numbers"),
        ({"layers.0.weight": np.ones((2, 3)), "layers.2.weight": np.ones((1, 3))}, "layers.2"),
        ({"layers.0.weight": np.ones((1, 3)), "layers.0.bias": np.ones(2)}, "layers.0"),
        ({"layers.0.bias": np.ones(2)}, "layers.0.bias"),
        ({"layers.0.weight": np.ones((1, 3)), "norm.scale": np.ones(3)}, "'norm.scale'"),
        ({"a.0.weight": np.ones((3, 3)), "b.0.weight": np.ones((1, 3))}, "one stack"),
        ({"weight": np.array([[np.nan]])}, "not finite"),
    ],
)
def test_what_is_no_stack_of_layers_is_refused(arrays, named):
    with pytest.raises(DataError) as error:
        collapse(arrays)
    assert named in str(error.value)


def test_a_file_of_layers_needs_the_embedding_named(tmp_path):
    save_file(made_stack(4, 1), tmp_path / "head.safetensors")
    with pytest.raises(ConfigError, match="Set embedding"):
        load_head(str(tmp_path / "head.safetensors"))


def test_a_head_is_not_put_on_another_embedding(tmp_path):
    fit_head(*made_rows()).save(tmp_path / "head.npz")
    with pytest.raises(ConfigError, match="fitted on 'pixels'"):
        load_head(str(tmp_path / "head.npz"), embedding=MEAN_COLOUR)


@pytest.mark.parametrize("name", ["head.pth", "missing.safetensors", "broken.safetensors", "broken.npz"])
def test_a_file_that_is_no_head_is_refused(tmp_path, name):
    for broken in ("broken.safetensors", "broken.npz", "head.pth"):
        (tmp_path / broken).write_bytes(b"not a head")
    with pytest.raises(DataError, match=name):
        load_head(str(tmp_path / name))


def test_a_head_on_an_embedding_of_the_users():
    head = LinearHead(weight=np.array([1.0, 0.0, -1.0]), bias=0.5, embedding=MEAN_COLOUR)
    assert head.score([Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")]) == [1.5, -0.5]
    unit = LinearHead(weight=np.array([1.0, 0.0, 0.0]), bias=0.0, embedding=MEAN_COLOUR, normalise=True)
    assert unit.score([Image.new("RGB", (4, 4), (120, 0, 0))]) == [1.0]
    assert head.score([]) == []


def test_a_head_of_another_width_than_its_embedding_is_an_error():
    head = LinearHead(weight=np.ones(5), bias=0.0, embedding=MEAN_COLOUR, name="mine")
    with pytest.raises(DataError, match=r"'mine'.*\(1, 3\).*\(1, 5\)"):
        head.score([Image.new("RGB", (4, 4))])


@pytest.mark.parametrize(
    "embedding", ["no.such:thing", "tests.unit.rewards.image_embeddings:none", "rubbish", ":x"]
)
def test_an_embedding_that_does_not_exist_is_an_error(embedding):
    with pytest.raises(LoadError, match="module:attribute"):
        LinearHead(weight=np.ones(3), bias=0.0, embedding=embedding).score([Image.new("RGB", (4, 4))])


def test_pixels_are_the_embedding_unless_another_is_named():
    image = vision_shapes.draw("shapes-train-0-000000")
    head = LinearHead(weight=np.eye(30)[3], bias=1.0)
    assert head.score([image]) == pytest.approx([pixel_features([image])[0, 3] + 1])
