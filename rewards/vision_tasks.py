"""Noisy pictures to be looked at, drawn from their ids: how many shapes there are, or in which quarter one lies.

The task of `recipes/cpu/vlm_count.yaml`. A shape is fainter than the noise of a pixel: it shows only to who adds up the
right pixels, which a tower of random weights does not. Its kind, size and colour say nothing of the answer.
"""

import base64
import io
import random
from typing import Literal

from PIL import Image, ImageDraw

from rewards.reasoning_tasks import Split

SIZE = 32
"""Pixels on a side."""
Task = Literal["count", "quarter"]
ANSWERS = ("1", "2", "3", "4")
SHAPES = ("disc", "square", "triangle")
QUESTIONS = {"count": "how many?", "quarter": "which quarter?"}
_CONTRAST = (90, 120)


def pictures(
    seed: int = 0, size: int = 1000, *, task: Task = "count", noise: float = 0.6, split: Split = "train"
) -> list[dict[str, object]]:
    """Rows {id, prompt, images, reference, gold_completion} of `size` pictures; a picture is a data: URI of a PNG.

    A share `noise` of each pixel is random. An id belongs to one split, and its picture is always the same.
    """
    rows: list[dict[str, object]] = []
    for number in range(size):
        name = f"{task} {split} {seed} {number}"
        answer = ANSWERS[number % len(ANSWERS)]
        rows.append(
            {
                "id": name,
                "prompt": QUESTIONS[task],
                "images": [data_uri(picture(name, task, answer, noise=noise))],
                "reference": answer,
                "gold_completion": answer,
            }
        )
    return rows


def picture(name: str, task: Task, answer: str, *, noise: float) -> Image.Image:
    """The picture of an id: shapes in `answer` quarters for `count`, one in that quarter for `quarter`."""
    draw = random.Random(name)
    chosen = draw.sample(range(4), int(answer)) if task == "count" else [int(answer) - 1]
    ground = tuple(draw.randrange(60, 100) for _ in range(3))
    image = Image.new("RGB", (SIZE, SIZE), ground)
    pen = ImageDraw.Draw(image)
    for quarter in chosen:
        side = draw.randint(11, 14)
        top, left = (SIZE // 2 * place + draw.randint(0, SIZE // 2 - side) for place in divmod(quarter, 2))
        colour = tuple(level + draw.randint(*_CONTRAST) for level in ground)
        _shape(pen, draw.choice(SHAPES), (left, top, left + side - 1, top + side - 1), colour)
    grain = Image.frombytes("RGB", image.size, draw.randbytes(3 * SIZE * SIZE))
    return Image.blend(image, grain, noise)


def data_uri(image: Image.Image) -> str:
    """The picture as text."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def is_right(completion: str, reference: str) -> float:
    """1 when the completion is the answer and nothing else."""
    return float(completion.strip() == reference)


def is_answer(completion: str) -> float:
    """1 when the completion is one of the answers there are, right or wrong."""
    return float(completion.strip() in ANSWERS)


def _shape(
    pen: ImageDraw.ImageDraw, kind: str, box: tuple[int, int, int, int], colour: tuple[int, ...]
) -> None:
    left, top, right, bottom = box
    match kind:
        case "disc":
            pen.ellipse(box, fill=colour)
        case "square":
            pen.rectangle(box, fill=colour)
        case _:
            pen.polygon([((left + right) // 2, top), (left, bottom), (right, bottom)], fill=colour)
