"""Pictures drawn as tokens: four colours are asked for, one for each quarter of a grid of 4 x 4 image codes.

The task of `recipes/cpu/image_tokens.yaml`. A prompt reads `red blue/green red:`, its answer
`rbgr<boi><c0><c0><c4>...`: a plan of a letter for each quarter, then the codes in reading order. A reward sees the
codes as this text, which is what the tokenizer says of their ids; `picture` turns it into pixels, which are judged.
"""

import random
import re
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewards.reasoning_tasks import Split, lot, split_of
from rlhf.types import Prompt, RewardResult, Trajectory

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "orange": (245, 140, 20),
    "purple": (140, 40, 170),
    "white": (250, 250, 250),
    "gray": (128, 128, 128),
}
PLANS = dict(zip(COLOURS, "rgbyopwa", strict=True))
"""The letter of each colour."""
SIDE = 4
PATCH = 8
"""Pixels on a side of a code."""
_SHADES = (1.0, 0.88)
_CODE = re.compile(r"<c(\d+)>")
_IMAGE = re.compile(rf"<boi>((?:<c\d+>){{{SIDE * SIDE}}})")


def codebook() -> NDArray[np.uint8]:
    """[16, PATCH, PATCH, 3]: the patch of each code, every colour in two shades."""
    flat = [[shade * part for part in colour] for colour in COLOURS.values() for shade in _SHADES]
    patches = np.array(flat).round().astype(np.uint8)[:, None, None]
    return np.broadcast_to(patches, (len(flat), PATCH, PATCH, 3)).copy()


def picture(completion: str) -> Image.Image | None:
    """The first whole picture in a completion; None where there is none."""
    found = _IMAGE.search(completion)
    if found is None:
        return None
    codes = np.array([int(code) for code in _CODE.findall(found[1])]).reshape(SIDE, SIDE)
    rows = codebook()[codes].transpose(0, 2, 1, 3, 4)
    return Image.fromarray(rows.reshape(SIDE * PATCH, SIDE * PATCH, 3))


def requests(seed: int = 0, size: int = 1000, *, split: Split = "train") -> list[dict[str, str]]:
    """Rows {id, prompt, reference} of `size` distinct requests; the reference has a colour for each quarter.

    A request belongs to one split for ever. ValueError where there are fewer: there are 4096 of both together.
    """
    known = [colours for colours in product(COLOURS, repeat=4) if split_of(_asked(colours)) == split]
    if size > len(known):
        raise ValueError(f"found {len(known)} {split} requests, expected {size}: lower the size")
    chosen = random.Random(f"{split} {seed}").sample(known, size)
    return [{"id": _asked(c), "prompt": _asked(c), "reference": " ".join(c)} for c in chosen]


def demonstrations(
    seed: int = 0, size: int = 1000, *, careless: float = 0.0, noise: float = 0.0, unconditional: float = 0.0
) -> list[dict[str, str]]:
    """`size` rows {id, prompt, completion} of training requests, for supervised fine-tuning.

    A share `careless` of them paints the last quarter as the one beside it, and a share `noise` of their codes is any:
    data of mixed quality. In a share `unconditional` all text is <pad>: what classifier-free guidance compares with.
    """
    rows = requests(seed, min(size, 3000))
    found = []
    for number in range(size):
        row = rows[number % len(rows)]
        name = f"{number} {seed} {row['id']}"
        colours = row["reference"].split()
        plan = "".join(PLANS[colour] for colour in colours)
        if lot(f"style {name}") < careless:
            colours[3] = colours[2]
        prompt = row["prompt"]
        if lot(f"text {name}") < unconditional:
            prompt, plan = "<pad>" * len(prompt), "<pad>" * len(plan)
        completion = f"{plan}<boi>{_painted(colours, name, noise=noise)}"
        found.append({"id": name, "prompt": prompt, "completion": completion})
    return found


def is_right(prompt: Prompt, trajectory: Trajectory) -> RewardResult:
    """1 when every pixel has the colour asked for, else 0; `unparsable` where there is no whole picture."""
    share = _share(prompt, trajectory)
    if share is None:
        return RewardResult(value=0.0, outcome="unparsable")
    return RewardResult(value=float(share == 1), outcome="ok" if share == 1 else "wrong")


def agreement(prompt: Prompt, trajectory: Trajectory) -> float:
    """The share of pixels that have the colour asked for; 0 where there is no whole picture.

    The judge knows eight colours by name, and sees pixels: it is the place of a CLIP score in T2I-R1.
    """
    return _share(prompt, trajectory) or 0.0


def named(image: Image.Image) -> NDArray[np.int64]:
    """[height, width]: the place in COLOURS of what comes nearest to each pixel."""
    pixels = np.asarray(image, np.float64)[:, :, None]
    distances = ((pixels - np.array(list(COLOURS.values()), np.float64)) ** 2).sum(-1)
    nearest: NDArray[np.int64] = distances.argmin(-1)
    return nearest


def _share(prompt: Prompt, trajectory: Trajectory) -> float | None:
    image = picture(trajectory.completion)
    if image is None:
        return None
    seen = named(image)
    asked = [list(COLOURS).index(colour) for colour in str(prompt.reference).split()]
    half = seen.shape[0] // 2
    wanted = np.kron(np.array(asked).reshape(2, 2), np.ones((half, half), int))
    return float((seen == wanted).mean())


def _asked(colours: tuple[str, ...]) -> str:
    return f"{colours[0]} {colours[1]}/{colours[2]} {colours[3]}:"


def _painted(colours: list[str], name: str, *, noise: float) -> str:
    draw = random.Random(f"paint {name}")
    shades = [draw.randrange(len(_SHADES)) for _ in colours]
    codes = []
    for down, right in product(range(SIDE), repeat=2):
        quarter = 2 * (2 * down // SIDE) + 2 * right // SIDE
        code = len(_SHADES) * list(COLOURS).index(colours[quarter]) + shades[quarter]
        codes.append(draw.randrange(len(_SHADES) * len(COLOURS)) if draw.random() < noise else code)
    return "".join(f"<c{code}>" for code in codes)
