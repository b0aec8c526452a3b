"""An embedding that a recipe could name."""

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image


def mean_colour(images: Sequence[Image]) -> np.ndarray:
    """[n, 3] in 0 to 1."""
    return np.array([np.asarray(image, np.float64).mean((0, 1)) / 255 for image in images])
