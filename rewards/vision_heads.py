"""A judge that is one linear map of an embedding: fitted from ratings, or read from a file, LAION's kind included.

LAION's aesthetic head is a stack of linear layers with nothing but dropout between them, so it is one linear map, and
is kept as one. It comes as a .pth, which only torch reads and which may run code: convert it once, where torch is:

    safetensors.torch.save_file(torch.load("head.pth", weights_only=True), "head.safetensors")
"""

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rewards import vision_pixels, vision_shapes
from rlhf.errors import ConfigError, DataError, LoadError

Embedding = Callable[[Sequence[Image]], Any]
PIXELS = "pixels"
"""Embedding of `vision_pixels.pixel_features`."""
_LAYER = re.compile(r"(.*?)(\d+)\.(weight|bias)")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LinearHead:
    """A `Judge`: weight . embedding(image) + bias."""

    weight: NDArray[np.float64]
    """[d]"""
    bias: float
    embedding: str = PIXELS
    """"pixels", or `module:attribute` of a function that gives [n, d] for n images. It is loaded where it is called."""
    normalise: bool = False
    """Bring each embedding to length 1 first, as LAION's heads expect."""
    name: str = "linear-head"
    recipe: str = ""
    """What a head that is fitted anew where it is used was fitted to: its last bits differ among machines."""

    @property
    def version(self) -> str:
        """Of the embedding and the numbers, or the recipe that gives them."""
        numbers = np.append(self.weight, self.bias).astype("<f8").tobytes()
        source = vision_pixels.VERSION if self.embedding == PIXELS else self.embedding
        return f"{source} {self.normalise} {self.recipe or sha256(numbers).hexdigest()[:16]}"

    reads_query = False

    def score(self, images: Sequence[Image], queries: Sequence[str] | None = None) -> list[float]:  # noqa: ARG002
        """The head's numbers. DataError for an embedding of another width."""
        if not images:
            return []
        return self.rate(_embedded(images, self.embedding))

    def rate(self, features: NDArray[np.float64]) -> list[float]:
        """The head's numbers for embeddings [n, d]. DataError for another width."""
        expected = (len(features), len(self.weight))
        if features.shape != expected:
            raise DataError(
                f"judge {self.name!r}: {self.embedding} gave an array {features.shape} for {len(features)} images, "
                f"expected {expected}: the head was made for another embedding."
            )
        return [float(x) for x in _prepared(features, self.normalise) @ self.weight + self.bias]

    def save(self, file: Path) -> None:
        """Write it as .safetensors or .npz, by the name."""
        settings = {"embedding": self.embedding, "normalise": str(self.normalise), "name": self.name}
        arrays = {"weight": self.weight, "bias": np.array([self.bias])}
        if file.suffix == ".safetensors":
            save_file(arrays, file, metadata=settings)
        elif file.suffix == ".npz":
            np.savez(file, **arrays, settings=np.array(json.dumps(settings)))  # type: ignore[arg-type]
        else:
            raise DataError(f"{file}: a head is saved as .safetensors or .npz.")


def fit_head(
    features: NDArray[Any],
    ratings: Sequence[float],
    *,
    ridge: float = 1.0,
    embedding: str = PIXELS,
    normalise: bool = False,
) -> LinearHead:
    """Ridge regression of ratings [n] on features [n, d] as `embedding` gives them.

    `ridge` is in units of features brought to variance 1 and added once, not per row; the bias is free. A feature that
    never changes gets no weight.
    """
    given, wanted = np.asarray(features, np.float64), np.asarray(ratings, np.float64)
    if given.ndim != 2 or wanted.shape != given.shape[:1] or len(given) < 2:
        raise DataError(
            f"features {given.shape} and ratings {wanted.shape}, expected [n, d] and [n] with 2 rows or more."
        )
    for what, values in (("feature", given.sum(1)), ("rating", wanted)):
        if not np.isfinite(values).all():
            raise DataError(
                f"row {int(np.argmin(np.isfinite(values)))} has a {what} that is not a finite number."
            )
    if ridge < 0:
        raise ConfigError(f"ridge is {ridge}, expected 0 or more.")
    given = _prepared(given, normalise)
    mean, spread = given.mean(0), given.std(0)
    varies = spread > 1e-9 * np.maximum(np.abs(mean), 1e-9)
    standard = (given[:, varies] - mean[varies]) / spread[varies]
    # As least squares on rows added for the penalty: also solved where features are dependent and ridge is 0.
    rows = np.concatenate([standard, np.sqrt(ridge) * np.eye(standard.shape[1])])
    centred = np.concatenate([wanted - wanted.mean(), np.zeros(standard.shape[1])])
    weight = np.zeros(len(mean))
    weight[varies] = np.linalg.lstsq(rows, centred, rcond=None)[0] / spread[varies]
    return LinearHead(
        weight=weight, bias=float(wanted.mean() - mean @ weight), embedding=embedding, normalise=normalise
    )


def low_level(size: int = 3000, seed: int = 9, noise: float = 1.0, name: str = "low-level") -> LinearHead:
    """The aesthetic model of `vision_shapes`: knows the low-level part of taste, as real ones do, and sees pixels only.

    Fitted, when it is made, to that part of `size` train pictures with a normal error of `noise` on the scale of 10.
    On unseen pictures it correlates with H by about .6, with the low-level part by .9, with composition by -.03.
    """
    return replace(_low_level(size, seed, noise), name=name)


@lru_cache(maxsize=4)
def _low_level(size: int, seed: int, noise: float) -> LinearHead:
    gallery = vision_shapes.gallery("train", size, seed)
    errors = noise * np.random.default_rng([seed, size]).standard_normal(size)
    ratings = vision_shapes.low_level_scores(gallery.ids()) + errors
    head = fit_head(_embedded(gallery.load(gallery.ids()), PIXELS), ratings.tolist(), ridge=10.0)
    return replace(head, recipe=f"low-level of {gallery.version}, noise {noise}")


def load_head(
    path: str, embedding: str | None = None, normalise: bool | None = None, name: str | None = None
) -> LinearHead:
    """The head of a .safetensors or .npz file: one that `save` wrote, or the layers of a linear stack.

    A stack does not say what it was trained on: give `embedding`, and `normalise: true` for LAION's. Raises DataError
    for another file, ConfigError where the embedding is not known, or another than the one of the file.
    """
    arrays, settings = _read(Path(path))
    said = settings.get("embedding")
    if embedding is None and said is None:
        raise ConfigError(
            f"{path} does not say what it was trained on. Set embedding to pixels or `module:attribute`."
        )
    if None not in (embedding, said) and embedding != said:
        raise ConfigError(f"embedding is {embedding!r}, but the head of {path} was fitted on {said!r}.")
    weight, bias = collapse(arrays, source=path)
    return LinearHead(
        weight=weight,
        bias=bias,
        embedding=str(embedding or said),
        normalise=settings.get("normalise") == "True" if normalise is None else normalise,
        name=name or settings.get("name", Path(path).stem),
    )


def collapse(
    arrays: Mapping[str, NDArray[Any]], *, source: str = "the head"
) -> tuple[NDArray[np.float64], float]:
    """(weight [d], bias) of linear layers one after the other, `layers.0.weight` and the like, in order of number.

    Right only where nothing but dropout stands between them. DataError for what is not such a stack with one output.
    """
    layers: dict[tuple[str, int], dict[str, NDArray[np.float64]]] = {}
    for key, array in arrays.items():
        found = _LAYER.fullmatch(key) or re.fullmatch(r"()()(weight|bias)", key)
        if found is None:
            raise DataError(
                f"{source} holds {key!r}, expected names such as layers.0.weight and layers.0.bias."
            )
        place = layers.setdefault((found[1], int(found[2] or 0)), {})
        place[found[3]] = np.asarray(array, np.float64)
    if len({prefix for prefix, _ in layers}) != 1 or not all("weight" in layer for layer in layers.values()):
        raise DataError(
            f"{source} holds {', '.join(sorted(arrays)) or 'nothing'}, expected the layers of one stack."
        )
    matrix: NDArray[np.float64] | None = None
    offset = np.zeros(1)
    for (prefix, number), layer in sorted(layers.items()):
        weight = np.atleast_2d(layer["weight"])
        bias = layer.get("bias", np.zeros(len(weight))).reshape(-1)
        if (
            weight.ndim != 2
            or bias.shape != weight.shape[:1]
            or (matrix is not None and weight.shape[1] != len(matrix))
        ):
            raise DataError(
                f"{source}: layer {prefix}{number} has a weight {weight.shape} and a bias {bias.shape}, which do not "
                "follow on the layer before it."
            )
        matrix, offset = (weight, bias) if matrix is None else (weight @ matrix, weight @ offset + bias)
    assert matrix is not None
    if len(matrix) != 1:
        raise DataError(f"{source} gives {len(matrix)} numbers, expected one score.")
    if not (np.isfinite(matrix).all() and np.isfinite(offset).all()):
        raise DataError(f"{source} holds a number that is not finite.")
    return matrix[0], float(offset[0])


def _read(file: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "np") as opened:
                names = opened.keys()
                return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata() or {})
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as opened:
                arrays = {key: opened[key] for key in opened.files}
            return arrays, json.loads(str(arrays.pop("settings", "{}")))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise DataError(f"{file} cannot be read as a head: {error}") from error
    raise DataError(
        f"{file} is not .safetensors or .npz. The docstring of rewards.vision_heads says how a .pth is converted."
    )


def _embedded(images: Sequence[Image], spec: str) -> NDArray[np.float64]:
    return np.asarray(_embedding_of(spec)(images), np.float64)


@lru_cache(maxsize=16)
def _embedding_of(spec: str) -> Embedding:
    if spec == PIXELS:
        return vision_pixels.pixel_features
    module, _, attribute = spec.partition(":")
    try:
        found: Embedding = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise LoadError(f"embedding is {spec!r}, expected pixels or `module:attribute`: {error}") from error
    return found


def _prepared(features: NDArray[np.float64], normalise: bool) -> NDArray[np.float64]:
    if not normalise:
        return features
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: NDArray[np.float64] = features / np.maximum(lengths, 1e-12)
    return unit
