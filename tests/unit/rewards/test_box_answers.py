import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.box_answers import OneBox, SeveralBoxes
from rlhf.config.rewards import RewardConfig
from rlhf.errors import ConfigError, DataError
from rlhf.rollout.scoring import RewardPool
from tests.unit.rewards.attempts import group_of, prompt_of, worthless

ROOT = Path(__file__).parents[3]
GOLD = "[10, 20, 30, 40]"
HALF = "[10, 20, 30, 30]"
PIXELS = OneBox(frame="pixels")
SET = SeveralBoxes(frame="pixels")
A, B, C = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]


def tagged(*answers: object) -> str:
    return "<think>so</think>" + " ".join(f"<answer>{answer}</answer>" for answer in answers)


@pytest.mark.parametrize(
    "completion",
    [
        GOLD,
        tagged(GOLD),
        rf"\boxed{{{GOLD}}}",
        '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]\n```',
        tagged('{"bbox_2d": [10.0, 20, 30, 40]}'),
        "(10, 20), (30, 40)",
        f"{GOLD}, {GOLD}",
        tagged(GOLD, GOLD),
    ],
)
def test_the_golds_box_is_1_in_every_measure(completion):
    for measure in ("iou", "giou", "giou_unit"):
        assert OneBox(frame="pixels", measure=measure)(completion, GOLD).value == 1.0
    assert OneBox(frame="pixels", threshold=1.0)(completion, GOLD).value == 1.0


def test_measures_of_half_a_box_and_of_one_beside_it():
    assert PIXELS(tagged(HALF), GOLD).value == 0.5
    assert OneBox(frame="pixels", threshold=0.5)(tagged(HALF), GOLD).value == 1.0
    assert OneBox(frame="pixels", threshold=0.51)(tagged(HALF), GOLD).value == 0.0
    beside = tagged("[30, 20, 50, 40]")
    assert PIXELS(beside, GOLD).value == 0.0
    assert OneBox(frame="pixels", measure="giou")(tagged("[50, 20, 70, 40]"), GOLD).value == pytest.approx(
        -1 / 3
    )
    assert OneBox(frame="pixels", measure="giou_unit")(
        tagged("[50, 20, 70, 40]"), GOLD
    ).value == pytest.approx(1 / 3)
    assert [PIXELS(tagged(text), GOLD).outcome for text in (HALF, "[10, 20, 30, 29]")] == ["ok", "wrong"]


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "<think>" + GOLD,
        GOLD + "</think>",
        f"It is {GOLD}",
        f"{GOLD} or {HALF}",
        f"{GOLD}, {HALF}",
        tagged(GOLD, HALF),
        tagged("[10, 20, 30, NaN]"),
        tagged("[30, 40, 10, 20]"),
        tagged("[10, 20, 10, 40]"),
        tagged("[" * 10000),
        "[10, 20, 30, 40]" * 10000,
        tagged(f"{GOLD}, something else"),
    ],
    ids=lambda text: text[:40],
)
def test_no_single_box_is_unparsable_and_worth_the_least(completion):
    for measure, least in (("iou", 0.0), ("giou", -1.0), ("giou_unit", 0.0)):
        result = OneBox(frame="pixels", measure=measure)(completion, GOLD)
        assert (result.value, result.outcome) == (least, "unparsable")


def test_frames_are_brought_together():
    sizes = {"image_size": [640, 480], "input_size": [320, 240]}
    gold = "[64, 48, 320, 240]"
    answers = {
        "pixels": "[64, 48, 320, 240]",
        "resized": "[32, 24, 160, 120]",
        "unit": "[0.1, 0.1, 0.5, 0.5]",
        "thousand": "[100, 100, 500, 500]",
    }
    for frame, answer in answers.items():
        reward = OneBox(frame=frame, gold_frame="pixels")
        assert reward(tagged(answer), gold, **sizes).value == 1.0
        for other, text in answers.items():
            assert other == frame or reward(tagged(text), gold, **sizes).value < 0.5
    swapped = OneBox(frame="thousand", form="xywh", gold_frame="pixels", gold_form="cxcywh")
    assert swapped(tagged("[100, 100, 400, 400]"), "[192, 144, 256, 192]", **sizes).value == pytest.approx(
        1.0
    )


def test_a_frame_that_needs_a_size_says_so():
    with pytest.raises(DataError, match=r"image_size is None, expected \[width, height\]"):
        OneBox(frame="thousand", gold_frame="pixels")(tagged(GOLD), GOLD)
    with pytest.raises(DataError, match=r"input_size is None"):
        OneBox(frame="resized", gold_frame="unit")(tagged(GOLD), "[0.1, 0.1, 0.5, 0.5]")
    assert OneBox(frame="resized")(tagged(GOLD), GOLD).value == 1.0


def test_an_answer_outside_the_picture_only_loses():
    reward, size = OneBox(frame="pixels"), [30, 40]
    assert reward(tagged("[10, 20, 60, 40]"), GOLD, image_size=size).value == pytest.approx(20 / 50)
    assert OneBox(frame="unit")(tagged("[100, 100, 500, 500]"), "[0.1, 0.1, 0.5, 0.5]").value == 0.0


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (None, "expected a box"),
        ("", "expected a box"),
        ("cat", "expected a box"),
        ("[]", "expected a box"),
        ("[1, 2, 3, NaN]", "expected a box"),
        ("[10, 20, 30]", "expected a box"),
        ("[30, 40, 10, 20]", "has no area"),
        ("[10, 20, 10, 40]", "has no area"),
        ("[10, 20, 300, 40]", "lies outside its picture"),
    ],
)
def test_a_bad_gold_is_an_error_and_never_a_score(reference, said):
    for reward in (PIXELS, SET):
        with pytest.raises(DataError, match=said):
            reward(tagged(GOLD), reference, image_size=[100, 100])


def test_a_gold_may_be_a_little_off_its_picture():
    assert PIXELS(tagged("[-1, 0, 100, 101]"), "[-1, 0, 100, 101]", image_size=[100, 100]).value == 1.0


def test_one_box_refuses_a_gold_of_several():
    with pytest.raises(DataError, match="reference has 2 boxes, expected one: use rewards"):
        PIXELS(tagged(GOLD), f"[{GOLD}, {HALF}]")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"frame": "qwen"}, "frame is 'qwen', expected one of pixels, resized, unit, thousand"),
        ({"frame": "unit", "form": "yxyx"}, "form is 'yxyx', expected one of xyxy"),
        ({"frame": "unit", "gold_frame": "x"}, "gold_frame is 'x'"),
        ({"frame": "unit", "threshold": 0}, "threshold is 0"),
        ({"frame": "unit", "measure": "diou"}, "measure is 'diou'"),
        ({"frame": "unit", "measure": "giou", "threshold": 0.5}, "leave one of them out"),
    ],
)
def test_bad_options_are_refused_at_load(keys, said):
    with pytest.raises(ConfigError, match=said):
        OneBox(**keys)


@pytest.mark.parametrize(
    ("answer", "value", "precision", "recall"),
    [
        ([A, B], 1.0, 1.0, 1.0),
        ([B, A], 1.0, 1.0, 1.0),
        ([A], 2 / 3, 1.0, 0.5),
        ([A, A], 0.5, 0.5, 0.5),
        ([A] * 50 + [B], 4 / 53, 2 / 51, 1.0),
        ([A, B, C], 4 / 5, 2 / 3, 1.0),
        ([C], 0.0, 0.0, 0.0),
        ([A, [30, 10, 20, 0]], 0.5, 0.5, 0.5),
        ([[0, 0, 10, 5], B], 0.75, 0.75, 0.75),
    ],
)
def test_each_box_is_paired_once(answer, value, precision, recall):
    result = SET(tagged(json.dumps(answer)), json.dumps([A, B]))
    assert result.value == pytest.approx(value)
    assert (result.parts["precision"], result.parts["recall"]) == (
        pytest.approx(precision),
        pytest.approx(recall),
    )


def test_the_pairing_is_the_best_one_and_not_the_first():
    gold = [[0, 0, 10, 10], [0, 0, 10, 20]]
    answer = [[0, 0, 10, 12], [0, 0, 10, 10]]
    assert SET(tagged(json.dumps(answer)), json.dumps(gold)).value == pytest.approx((1 + 12 / 20) / 2)


def test_a_threshold_counts_pairs_and_labels_keep_them_apart():
    at_half = SeveralBoxes(frame="pixels", threshold=0.5)
    assert at_half(tagged([[0, 0, 10, 5], B]), json.dumps([A, B])).value == 1.0
    assert at_half(tagged([[0, 0, 10, 4], B]), json.dumps([A, B])).value == 0.5
    labelled = SeveralBoxes(frame="pixels", labels=True)
    gold = json.dumps([{"bbox_2d": A, "label": "Cat"}, {"bbox_2d": B, "label": "dog"}])
    swapped = json.dumps([{"bbox_2d": A, "label": "dog"}, {"bbox_2d": B, "label": "cat"}])
    assert labelled(tagged(gold.replace("Cat", "cat")), gold).value == 1.0
    assert labelled(tagged(swapped), gold).value == 0.0
    assert labelled(tagged([A, B]), gold).value == 0.0
    with pytest.raises(DataError, match="a box without a label"):
        labelled(tagged([A]), json.dumps([A]))


def test_two_lists_and_too_many_boxes_do_not_pay():
    gold = json.dumps([A, B])
    assert SET(tagged([A, B], [A, C]), gold).outcome == "unparsable"
    assert SET(tagged([A, B], [B, A]), gold).value == 1.0
    assert SET(tagged(f"{[[A, B]]} or {[[A, C]]}"), gold).outcome == "unparsable"
    many = [[i, 0, i + 1, 1] for i in range(101)]
    assert SET(tagged(many), gold).outcome == "limit"
    with pytest.raises(DataError, match="reference has 101 boxes, expected at most 100"):
        SET(tagged(many), json.dumps(many))


@pytest.mark.parametrize("name", worthless(prompt_of()))
def test_a_worthless_completion_earns_nothing(name):
    completion = worthless(prompt_of(f"Is it at {GOLD}?"))[name]
    assert PIXELS(completion, GOLD).value == 0.0
    assert SET(completion, GOLD).value == 0.0
    assert OneBox(frame="pixels", measure="giou")(completion, GOLD).value == -1.0


corner_lists = st.lists(st.tuples(*[st.integers(0, 8)] * 4).map(list), min_size=1, max_size=6)


@given(corner_lists)
def test_no_list_of_boxes_earns_more_than_the_gold(boxes):
    result = SET(tagged(boxes), json.dumps([A, [0, 0, 8, 4]]))
    assert result.value is not None
    assert 0 <= result.value <= 1


def test_a_worker_gives_a_bad_gold_no_score():
    reward = RewardConfig(use="rewards.box_answers:OneBox", kwargs={"frame": "pixels"})
    good = prompt_of(reference=GOLD, image_size=[100, 100])
    bad = prompt_of(reference="[30, 40, 10, 20]", image_size=[100, 100])

    async def run():
        pool = RewardPool([reward], num_workers=1, code_dir=str(ROOT))
        try:
            return [
                [*await pool.score(group_of(prompt, tagged(GOLD), tagged(HALF)))] for prompt in (good, bad)
            ]
        finally:
            await pool.close()

    graded, refused = asyncio.run(run())
    assert [result.value for result in graded] == [1.0, 0.5]
    assert [(result.value, result.outcome) for result in refused] == [(None, "error")] * 2
