"""`rlhf check` on rows of every visual reward, and the recipes of docs/visual_answers.md.

Golds are right, and no wrong answer is paid.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from rlhf.config.task import TaskConfig
from rlhf.importing import load_function
from rlhf.rollout.reward_shapes import bind
from tests.unit.check.checking import checked

OPTIONS = ["a cat", "A dog", "two birds", "none of these"]
BOXES = ([12, 40, 230, 310], [100, 20, 480, 400], [33, 250, 90, 333], [5, 5, 620, 470])
SIGNS = ("STOP", "No parking 8-18 h", "Platform 9 3/4", "Éclair au café 4,50 €", "EXIT ONLY")
CHOICES = [
    {
        "prompt": f"<image>Which is picture {i}?\n(A) a cat (B) A dog\n(C) two birds (D) none of these",
        "answer": gold,
    }
    for i, gold in enumerate("ABCDBC")
]
COUNTS = [
    {"prompt": f"<image>How many in picture {i}?", "answer": gold} for i, gold in enumerate([3, 0, 12, 7, 1])
]
PLACES = [{"prompt": f"<image>Where is object {i}?", "answer": list(box)} for i, box in enumerate(BOXES)]
SETS = [
    {
        "prompt": f"<image>Where are the birds of {i}?",
        "answer": [{"bbox_2d": BOXES[j], "label": "Bird"} for j in held],
    }
    for i, held in enumerate([(0, 1), (2, 3), (1, 2, 3), (0,)])
]
TEXTS = [{"prompt": f"<image>Read sign {i}.", "answer": text} for i, text in enumerate(SIGNS)]
PAGE = Path(__file__).parents[3] / "docs" / "visual_answers.md"
SNIPPETS = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
BOXED = r"<think>x</think>\boxed{{reference}}"


def rows_with(rows: list[dict[str, Any]], **columns: Any) -> list[dict[str, Any]]:
    return [row | columns for row in rows]


@pytest.mark.parametrize(
    ("use", "kwargs", "rows"),
    [
        ("visual_answers:choice", {}, CHOICES),
        ("visual_answers:choice", {}, rows_with(CHOICES, options=OPTIONS)),
        ("visual_answers:choice", {"lenient": True}, rows_with(CHOICES, options=OPTIONS)),
        ("visual_answers:count", {}, COUNTS),
        ("visual_answers:count", {"graded": True, "lenient": True}, COUNTS),
        ("visual_answers:number", {"graded": True}, [*COUNTS, {"prompt": "Weight?", "answer": "-2.5 kg"}]),
        ("box_answers:OneBox", {"frame": "pixels"}, PLACES),
        ("box_answers:OneBox", {"frame": "pixels", "threshold": 0.5}, PLACES[:3]),
        ("box_answers:OneBox", {"frame": "thousand", "form": "xywh", "measure": "giou"}, PLACES[:3]),
        ("box_answers:OneBox", {"frame": "resized", "measure": "giou_unit"}, PLACES),
        ("box_answers:SeveralBoxes", {"frame": "pixels", "labels": True}, SETS),
        ("box_answers:SeveralBoxes", {"frame": "pixels", "threshold": 0.5}, SETS),
        ("ocr:TextSimilarity", {}, TEXTS),
        ("ocr:TextSimilarity", {"threshold": 0.5}, TEXTS),
        ("ocr:TextSimilarity", {"share": "gold"}, TEXTS),
    ],
)
def test_check_finds_nothing_wrong(use, kwargs, rows, tmp_path):
    reward = {"use": f"rewards.{use}", "kwargs": kwargs}
    rows = rows_with(rows, image_size=[640, 480], input_size=[640, 480])
    for template in (None, BOXED) if "ocr" not in use else (None,):
        keys = {} if template is None else {"gold_template": template}
        found = checked(tmp_path, reward, rows=rows, reward_workers=1, **keys)
        assert found.fatal == {}
        assert found.says("golds") == f"{len(rows)} of {len(rows)} graded right"
        assert found.says("wrong answers") == "none of their kinds is paid"


def test_geo3ks_accuracy_and_format_add_up_to_its_reward(tmp_path):
    picture = tmp_path / "figure.png"
    Image.new("RGB", (28, 28), "white").save(picture)
    golds = ["65", r"2 \sqrt { 221 }", "5.1", r"\frac { 1 } { 2 }"]
    rows = [
        {
            "data_source": "hiyouga/geometry3k",
            "prompt": [{"role": "user", "content": f"<image>Find x in figure {i}."}],
            "images": [str(picture)],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": gold},
            "extra_info": {"split": "train", "index": i, "answer": gold, "question": "<image>Find x."},
        }
        for i, gold in enumerate(golds)
    ]
    rewards = (
        {"use": "rewards.math_answer:grade", "weight": 0.9},
        {"use": "rewards.response_format:think", "weight": 0.1},
    )
    found = checked(tmp_path, *rewards, rows=rows, gold_template=BOXED, reward_workers=1)
    assert found.fatal == {}
    assert found.says("golds") == "4 of 4 graded right"
    assert found.says("wrong answers") == "none of their kinds is paid"


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["kinds", "geometry3k"])
def test_every_snippet_of_the_page_loads(snippet):
    parsed = yaml.safe_load(snippet)["task"]
    task = TaskConfig.model_validate({"train": {"file": "rows.jsonl"}} | parsed)
    for reward in task.rewards:
        assert bind(load_function(reward.use, key="use"), reward.kwargs, key="docs").shape.kind == "sample"


def test_a_threshold_is_passed_by_the_wrong_answer_of_a_box_that_fills_its_picture(tmp_path):
    reward = {"use": "rewards.box_answers:OneBox", "kwargs": {"frame": "pixels", "threshold": 0.5}}
    found = checked(tmp_path, reward, rows=PLACES, reward_workers=1)
    assert found.fatal == {"gold not graded right": ["rows.jsonl:3"]}
