"""Careless demonstrations and preference pairs about pictures, and pairs of pictures for a text.

The task of `recipes/cpu/vlm_dpo.yaml` and `recipes/cpu/vision_reward_model.yaml`. In pairs every answer is chosen as
often as it is rejected, so that nothing but the picture says which is better.
"""

import random
from typing import Literal

from rewards.reasoning_tasks import Split
from rewards.vision_tasks import ANSWERS, QUESTIONS, Task, data_uri, picture

Shown = Literal["own", "other", "any"]
NOISE = 0.5
"""Share of a pixel that is random."""
_HABIT = "1"
_ORDINALS = ("top left", "top right", "bottom left", "bottom right")


def demonstrations(
    seed: int = 0,
    size: int = 1000,
    *,
    task: Task = "quarter",
    careless: float = 0.6,
    split: Split = "train",
) -> list[dict[str, object]]:
    """Rows {id, prompt, images, completion}. A share `careless` of the answers is `1`, whatever the picture shows."""
    rows: list[dict[str, object]] = []
    for number in range(size):
        name = f"{task} shown {split} {seed} {number}"
        answer = ANSWERS[number % len(ANSWERS)]
        given = _HABIT if random.Random(f"careless {name}").random() < careless else answer
        shown = [data_uri(picture(name, task, answer, noise=NOISE))]
        rows.append({"id": name, "prompt": QUESTIONS[task], "images": shown, "completion": given})
    return rows


def pairs(
    seed: int = 0,
    size: int = 1000,
    *,
    task: Task = "quarter",
    shown: Shown = "own",
    split: Split = "train",
) -> list[dict[str, object]]:
    """Rows {id, prompt, images, chosen, rejected}: the right answer and a wrong one.

    `shown` says which picture stands in a row: its own; `other`, one for which the rejected answer is right, so that
    who looks prefers that; or `any`, one of any answer, so that looking does not help.
    """
    rows: list[dict[str, object]] = []
    for number in range(size):
        name = f"{task} pair {split} {seed} {number}"
        draw = random.Random(f"wrong {name}")
        right = ANSWERS[number % len(ANSWERS)]
        wrong = draw.choice([answer for answer in ANSWERS if answer != right])
        answer = {"own": right, "other": wrong, "any": draw.choice(ANSWERS)}[shown]
        image = data_uri(picture(name, task, answer, noise=NOISE))
        rows.append(
            {"id": name, "prompt": QUESTIONS[task], "images": [image], "chosen": right, "rejected": wrong}
        )
    return rows


def picture_pairs(
    seed: int = 0, size: int = 1000, *, swapped: bool = False, split: Split = "train"
) -> list[dict[str, object]]:
    """Rows {id, prompt, chosen, rejected} of two pictures for a place: in the chosen one the shape lies there.

    `swapped`: the text is that of the rejected picture, so that who reads and looks prefers that.
    """
    rows: list[dict[str, object]] = []
    for number in range(size):
        name = f"places {split} {seed} {number}"
        draw = random.Random(f"wrong {name}")
        right = ANSWERS[number % len(ANSWERS)]
        wrong = draw.choice([answer for answer in ANSWERS if answer != right])
        chosen, rejected = (
            data_uri(picture(f"{name} {side}", "quarter", side, noise=NOISE)) for side in (right, wrong)
        )
        text = _ORDINALS[int(wrong if swapped else right) - 1]
        rows.append({"id": name, "prompt": text, "chosen": chosen, "rejected": rejected})
    return rows
