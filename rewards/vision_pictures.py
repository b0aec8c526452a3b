"""A smoke corpus of photographs: crops of the pictures in scikit-image's wheel, made worse in known ways.

As `vision_shapes`: a crop is a function of its id, `pictures-SPLIT-SEED-NUMBER`. Splits take different parts of each
photograph: the left half to train on, the next quarter to validate, the last to test. Some parts show little of their
subject, so relevance has a low ceiling. Three attributes, even in [0, 1]: H = 10 (.4 sharp + .3 contrast + .3 clean).
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image, ImageFilter

from rewards.vision_shapes import NAMED_SHARE, WORDS, Split, even_numbers
from rlhf.errors import DataError, DependencyError
from rlhf.retrieval import RetrievalQuery

VERSION = "pictures-1"
SUBJECTS = {
    "astronaut.png": "an astronaut", "brick.png": "a brick wall", "camera.png": "a man with a camera",
    "chelsea.png": "a cat", "coffee.png": "a cup of coffee", "coins.png": "old coins", "grass.png": "grass",
    "gravel.png": "gravel", "hubble_deep_field.jpg": "galaxies", "ihc.png": "stained tissue", "moon.png": "the moon",
    "motorcycle_left.png": "a motorcycle", "page.png": "a printed page", "retina.jpg": "a retina",
    "rocket.jpg": "a rocket",
}  # fmt: skip
WEIGHTS = (0.4, 0.3, 0.3)
"""Of sharp, contrast and clean in H."""
SIDE = 64
_LONG_SIDE = 512
"""Photographs are brought to this before a crop is taken, so that crops show about as much of each."""
_PARTS: dict[str, tuple[float, float]] = {"train": (0.0, 0.5), "validation": (0.5, 0.75), "test": (0.75, 1.0)}
_CROP = (72, 96)


class Look(NamedTuple):
    """All that is known of a crop."""

    file: str
    attributes: tuple[float, ...]

    @property
    def text(self) -> str:
        """The query that it answers."""
        return SUBJECTS[self.file]

    @property
    def taste(self) -> float:
        """H, 0 to 10."""
        return 10 * sum(weight * value for weight, value in zip(WEIGHTS, self.attributes, strict=True))


@dataclass(frozen=True, slots=True)
class PictureGallery:
    """`rlhf.retrieval.Gallery` of the first `size` crops of a split and a seed."""

    split: Split
    size: int
    seed: int = 0
    folder: str | None = None
    """Where the photographs lie; none: in scikit-image, DependencyError without it."""
    version: str = field(init=False, default="")

    def __post_init__(self) -> None:
        _check(self.split)
        if self.size < 1 or self.seed < 0:
            raise DataError(f"size is {self.size} and seed {self.seed}, expected 1 or more, and 0 or more.")
        files = _folder(self.folder)
        sizes = " ".join(str(_found(files / name).stat().st_size) for name in SUBJECTS)
        photographs = sha256(sizes.encode()).hexdigest()[:8]
        object.__setattr__(self, "version", f"{VERSION}-{photographs}-{self.split}-{self.seed}-{self.size}")

    def ids(self) -> list[str]:
        """All crops."""
        return _ids(self.split, self.size, self.seed)

    def load(self, ids: Sequence[str]) -> list[Image.Image]:
        """Any crops of this corpus, 64 x 64, RGB; `info["id"]` of each is its id."""
        return [_draw(name, self.folder) for name in ids]


@dataclass(frozen=True, slots=True)
class PictureTruth:
    """`rlhf.retrieval.Truth` of this corpus."""

    def relevant(self, query: RetrievalQuery, ids: Sequence[str]) -> list[bool]:
        """Of the photograph that the query names. DataError for a query that names none."""
        if query.text not in SUBJECTS.values():
            raise DataError(
                f"query {query.id!r} is {query.text!r}, expected one of {', '.join(SUBJECTS.values())}."
            )
        return [look_of(name).text == query.text for name in ids]

    def taste(self, ids: Sequence[str]) -> list[float]:
        """H, 0 to 10."""
        return [look_of(name).taste for name in ids]


def gallery(split: Split, size: int, seed: int = 0, folder: str | None = None) -> PictureGallery:
    """Crops of a split."""
    return PictureGallery(split, size, seed, folder)


def truth() -> PictureTruth:
    """What only an evaluation may see."""
    return PictureTruth()


def queries(split: Split) -> list[RetrievalQuery]:
    """`a cat` and the like: 9 train, 3 validation, 3 test."""
    _check(split)
    of_place = {3: "validation", 4: "test"}
    return [
        RetrievalQuery(id=Path(file).stem, text=text)
        for place, (file, text) in enumerate(SUBJECTS.items())
        if of_place.get(place % 5, "train") == split
    ]


def captions(split: Split, size: int, seed: int = 1) -> list[tuple[str, str]]:
    """(image id, caption): the subject, then a word for each attribute with probability .35."""
    _check(split)
    return [(name, _caption(name)) for name in _ids(split, size, seed)]


def zero_shot(split: Split, size: int, seed: int = 2) -> dict[str, list[str]]:
    """{text: ids of its crops} over all subjects."""
    _check(split)
    found: dict[str, list[str]] = {text: [] for text in SUBJECTS.values()}
    for name in _ids(split, size, seed):
        found[look_of(name).text].append(name)
    return found


@lru_cache(maxsize=1 << 16)
def look_of(name: str) -> Look:
    """What the crop with this id shows. DataError for an id of another corpus."""
    _split_of(name)
    place, *values = even_numbers(f"{VERSION} look {name}")[: 1 + len(WEIGHTS)]
    return Look(tuple(SUBJECTS)[int(place * len(SUBJECTS))], tuple(values))


def _caption(name: str) -> str:
    look, draws = look_of(name), even_numbers(f"{VERSION} caption {name}")
    named = zip(WORDS, look.attributes, draws, strict=False)
    return " ".join(
        [look.text, *(words[value < 0.5] for words, value, drawn in named if drawn < NAMED_SHARE)]
    )


def _draw(name: str, folder: str | None) -> Image.Image:
    look = look_of(name)
    sharp, contrast, clean = look.attributes
    across, down, size, noise, *_ = even_numbers(f"{VERSION} draw {name}")
    photograph = _photograph(look.file, folder)
    start, end = (share * photograph.width for share in _PARTS[_split_of(name)])
    side = min(_CROP[0] + int(size * (_CROP[1] - _CROP[0])), int(end - start), photograph.height)
    left, top = int(start + across * (end - start - side)), int(down * (photograph.height - side))
    crop = photograph.crop((left, top, left + side, top + side)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    # Pillow's blur takes a Python float only.
    pixels = np.asarray(crop.filter(ImageFilter.GaussianBlur(float(3 * (1 - sharp)))), np.float32)
    mean = float(pixels.mean())
    grain = np.random.default_rng(int(noise * 2**53)).standard_normal(pixels.shape, np.float32)
    pixels = mean + (pixels - mean) * (0.3 + 0.7 * contrast) + grain * (30 * (1 - clean))
    drawn = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    drawn.info["id"] = name
    return drawn


@lru_cache(maxsize=64)
def _photograph(file: str, folder: str | None) -> Image.Image:
    path = _found(_folder(folder) / file)
    try:
        with Image.open(path) as opened:
            whole = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}.") from error
    shrink = _LONG_SIDE / max(whole.size)
    return whole.resize((round(whole.width * shrink), round(whole.height * shrink)), Image.Resampling.LANCZOS)


def _folder(given: str | None) -> Path:
    if given is not None:
        return Path(given)
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(
            "vision_pictures takes its photographs from scikit-image, which is not installed: pip install scikit-image "
            "or give `folder`, where they lie. Without either there is rewards.vision_shapes."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _found(path: Path) -> Path:
    if not path.is_file():
        raise DataError(
            f"there is no photograph {path}, expected {', '.join(SUBJECTS)} of scikit-image there."
        )
    return path


def _ids(split: str, size: int, seed: int) -> list[str]:
    return [f"pictures-{split}-{seed}-{number:06d}" for number in range(size)]


def _split_of(name: str) -> str:
    corpus, *rest = name.split("-")
    is_known = corpus == "pictures" and len(rest) == 3 and rest[0] in _PARTS
    if not is_known or not all(part.isascii() and part.isdecimal() for part in rest[1:]):
        raise DataError(f"image id {name!r} is none of this corpus, expected pictures-SPLIT-SEED-NUMBER.")
    return rest[0]


def _check(split: str) -> None:
    if split not in get_args(Split):
        raise DataError(f"split is {split!r}, expected one of {', '.join(get_args(Split))}.")
