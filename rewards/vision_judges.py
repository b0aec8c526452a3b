"""Judges of images that need no model: hand-made pixel statistics, none at all, and a made person for evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rewards import vision_pixels, vision_shapes
from rewards.vision_pixels import FEATURES, pixel_features
from rlhf.errors import ConfigError, DataError
from rlhf.retrieval import Truth, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

PIXEL_WEIGHTS = {"sharpness": 1.0, "contrast": 1.0, "colourfulness": 1.0, "symmetry": 0.5, "noise": -1.0}
"""Of the parts of `Pixel`, each of which is in 0 to 1."""
_FULL = {
    # (feature, its value from which the part is 1)
    "sharpness": ("smooth_gradient_99", 0.2),
    "contrast": ("contrast", 0.25),
    "colourfulness": ("colourfulness", 0.4),
    "symmetry": ("mirror_symmetry", 1.0),
    "noise": ("noise", 0.3),
}
_LOGARITHMS = {"noise"}


@dataclass(frozen=True, slots=True)
class Pixel:
    """A `Judge`: the weighted sum of sharpness, RMS contrast, colourfulness, mirror symmetry and noise.

    It knows no content, and a crisp, loud, symmetric test card is its ideal: one member of several, or a baseline.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: dict(PIXEL_WEIGHTS))
    """Parts left out count 0."""
    name: str = "pixel"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(_FULL))
        if unknown or not any(self.weights.values()):
            raise ConfigError(
                f"weights has {unknown or 'nothing but zeros'}, expected some of {', '.join(_FULL)}, one not 0."
            )

    @property
    def version(self) -> str:
        """Of the statistics and the weights."""
        return f"{vision_pixels.VERSION} {sorted(self.weights.items())}"

    @property
    def range(self) -> tuple[float, float]:
        """Between which numbers scores lie."""
        values = self.weights.values()
        return sum(min(value, 0.0) for value in values), sum(max(value, 0.0) for value in values)

    reads_query = False

    def score(self, images: Sequence["Image"], queries: Sequence[str] | None = None) -> list[float]:  # noqa: ARG002
        """The weighted sums."""
        parts = self.parts(images)
        sums = sum((weight * parts[part] for part, weight in self.weights.items()), np.zeros(len(images)))
        lowest, highest = self.range
        return [float(value) for value in np.clip(sums, lowest, highest)]

    def parts(self, images: Sequence["Image"]) -> dict[str, NDArray[np.float64]]:
        """{part: [n] in 0 to 1}."""
        features = pixel_features(images)
        found = {}
        for part, (feature, full) in _FULL.items():
            values = features[:, FEATURES.index(feature)]
            found[part] = np.clip((np.exp(values) if feature in _LOGARITHMS else values) / full, 0, 1)
        return found


@dataclass(frozen=True, slots=True)
class Constant:
    """A `Judge` to whom all images are equal: alignment without a teacher of taste."""

    value: float = 0.0
    name: str = "constant"

    @property
    def version(self) -> str:
        """Of the value."""
        return f"constant {self.value}"

    reads_query = False

    def score(self, images: Sequence["Image"], queries: Sequence[str] | None = None) -> list[float]:  # noqa: ARG002
        """The value for each."""
        return [self.value] * len(images)


@dataclass(frozen=True, slots=True)
class NoisyPairJudge:
    """A `PairJudge` for evaluations: a person who knows the truth, is unsure of it, and likes what is shown first.

    Says "a" when mean taste of row a minus that of row b, plus `first_bias`, plus a normal error, is above `margin`,
    "b" below minus that. The error follows from what is shown in which order. Images tell their id in `info["id"]`, as
    those of `vision_shapes` do; DataError for others.
    """

    truth: Truth
    noise: float = 0.3
    first_bias: float = 0.25
    margin: float = 0.1
    seed: int = 0
    name: str = "noisy-person"

    @property
    def version(self) -> str:
        """Of the settings."""
        return f"noisy {self.noise} {self.first_bias} {self.margin} {self.seed}"

    def compare(self, query: str, row_a: Sequence["Image"], row_b: Sequence["Image"]) -> Verdict:
        """The row that seems better."""
        ids_a, ids_b = _ids(row_a), _ids(row_b)
        shown = "\0".join([str(self.seed), query, *ids_a, "", *ids_b])
        seed = int.from_bytes(blake2b(shown.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
        error = self.noise * np.random.default_rng(seed).standard_normal()
        gap = float(
            np.mean(self.truth.taste(ids_a)) - np.mean(self.truth.taste(ids_b)) + self.first_bias + error
        )
        if abs(gap) <= self.margin:
            return "tie"
        return "a" if gap > 0 else "b"


def _ids(row: Sequence["Image"]) -> list[str]:
    nameless = [place for place, image in enumerate(row) if "id" not in image.info]
    if nameless or not row:
        raise DataError(
            f"{'images ' + str(nameless) + ' of a row have no id' if nameless else 'a row is empty'}: NoisyPairJudge "
            "looks up the truth by image.info['id'], which our galleries give. Judge other images by a model."
        )
    return [str(image.info["id"]) for image in row]


def person_of_shapes(
    noise: float = 0.3, first_bias: float = 0.25, margin: float = 0.1, seed: int = 0
) -> NoisyPairJudge:
    """A noisy person before the pictures of `vision_shapes`."""
    return NoisyPairJudge(vision_shapes.truth(), noise=noise, first_bias=first_bias, margin=margin, seed=seed)
