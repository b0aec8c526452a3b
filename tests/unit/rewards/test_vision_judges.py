import pickle

import numpy as np
import pytest
from PIL import Image

from rewards import vision_shapes
from rewards.vision_judges import PIXEL_WEIGHTS, Constant, NoisyPairJudge, Pixel
from rlhf.errors import ConfigError, DataError
from rlhf.vision.judging import OrderConsistent, ask, tally

GALLERY = vision_shapes.gallery("test", 400, 3)
IDS = GALLERY.ids()
IMAGES = GALLERY.load(IDS)


def rows_by_taste() -> tuple[list[Image.Image], list[Image.Image]]:
    """The best and the worst ten."""
    order = np.argsort(vision_shapes.human_scores(IDS))
    return [IMAGES[i] for i in order[-10:]], [IMAGES[i] for i in order[:10]]


def test_pixel_is_the_weighted_sum_of_its_parts():
    judge = Pixel()
    parts = judge.parts(IMAGES)
    assert set(parts) == set(PIXEL_WEIGHTS)
    assert all(0 <= values.min() < values.max() <= 1 for values in parts.values())
    expected = sum(weight * parts[part] for part, weight in PIXEL_WEIGHTS.items())
    assert ask(judge, "a red circle", IDS, IMAGES) == pytest.approx(tuple(expected))


def test_pixel_prefers_pictures_that_look_better_at_the_surface():
    correlation = np.corrcoef(Pixel().score(IMAGES), vision_shapes.low_level_scores(IDS))[0, 1]
    assert 0.4 < correlation < 0.8


def test_pixel_counts_the_parts_it_is_given():
    judge = Pixel(weights={"noise": -2.0})
    assert judge.score(IMAGES[:5]) == pytest.approx(-2 * judge.parts(IMAGES[:5])["noise"])
    assert judge.range == (-2.0, 0.0)
    assert judge.version != Pixel().version


@pytest.mark.parametrize("weights", [{"sharpnes": 1.0}, {}, {"noise": 0.0}])
def test_pixel_refuses_weights_that_say_nothing(weights):
    with pytest.raises(ConfigError, match="sharpness"):
        Pixel(weights=weights)


def test_to_constant_all_are_equal():
    assert Constant().score(IMAGES[:3]) == [0.0] * 3
    assert Constant(value=2.5).score([]) == []


@pytest.mark.parametrize("judge", [Pixel(), Constant(), NoisyPairJudge(vision_shapes.truth())])
def test_judges_pickle(judge):
    assert pickle.loads(pickle.dumps(judge)) == judge
    assert pickle.loads(pickle.dumps(judge)).version == judge.version


def test_a_noisy_judge_sees_a_large_gap_in_any_order():
    best, worst = rows_by_taste()
    judge = NoisyPairJudge(vision_shapes.truth())
    assert (judge.compare("q", best, worst), judge.compare("q", worst, best)) == ("a", "b")


def test_a_noisy_judge_likes_what_is_first_and_says_the_same_when_asked_again():
    judge = NoisyPairJudge(vision_shapes.truth())
    rows = [(IMAGES[i : i + 10], IMAGES[i + 10 : i + 20]) for i in range(0, 400, 20)]
    said = [judge.compare(str(i), a, a) for i, (a, _) in enumerate(rows)]
    assert said.count("a") > 2 * said.count("b")
    assert said == [judge.compare(str(i), a, a) for i, (a, _) in enumerate(rows)]
    fair = NoisyPairJudge(vision_shapes.truth(), noise=0.0, first_bias=0.0, margin=0.0)
    assert {fair.compare("q", a, a) for a, _ in rows} == {"tie"}


def test_order_consistency_undoes_the_bias_for_what_is_first():
    judge = NoisyPairJudge(vision_shapes.truth(), noise=0.05, first_bias=3.0)
    rows = [(IMAGES[i : i + 10], IMAGES[i + 10 : i + 20]) for i in range(0, 400, 20)]
    assert tally(judge.compare("q", a, b) for a, b in rows).wins == 20
    assert tally(OrderConsistent(judge).compare("q", a, b) for a, b in rows).ties == 20


@pytest.mark.parametrize("row", [[], [Image.new("RGB", (8, 8))]])
def test_a_noisy_judge_needs_images_that_tell_their_id(row):
    with pytest.raises(DataError, match=r"image\.info"):
        NoisyPairJudge(vision_shapes.truth()).compare("q", IMAGES[:1], row)
