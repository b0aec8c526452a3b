"""A held-out set of squares embedded at random, and judges that count what they are asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from rlhf.retrieval import RetrievalQuery
from rlhf.vision.evaluate import Facts, known
from rlhf.vision.materials import EvalSet
from rlhf.vision.teaching import Panel
from tests.retrievers import COLOURS, Squares, SquaresTruth
from tests.unit.vision.benches import classes
from tests.unit.vision.recipes import captions


@dataclass
class Counting:
    """Mean of one colour channel; remembers each image it was asked about."""

    channel: int = 0
    name: str = "counting"
    version: str = "1"
    reads_query: bool = False
    asked: int = 0
    queries: list[str] = field(default_factory=list)

    def score(self, images: Sequence[Image.Image], queries: Sequence[str] | None = None) -> list[float]:
        self.asked += len(images)
        self.queries += queries or ()
        return [float(np.asarray(image)[..., self.channel].mean()) for image in images]


def random_vectors(*shape: int, seed: int = 0) -> Tensor:
    """Of length 1."""
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def heldout(number: int = 4) -> EvalSet:
    """One query per colour, with everything that is measured."""
    return EvalSet(
        gallery=Squares(number),
        queries=[RetrievalQuery(id=colour, text=f"a {colour} square") for colour in COLOURS],
        truth=SquaresTruth(),
        captions=captions(6),
        classes=classes(2),
    )


def facts(number: int = 4, *, width: int = 8, seed: int = 0) -> Facts:
    """The held-out set, its gallery embedded at random."""
    found = heldout(number)
    return known(found, random_vectors(len(found.gallery.ids()), width, seed=seed))


def panel(of: Facts, *, reads_query: bool = False) -> Panel:
    """Two judges that do not agree."""
    return Panel(
        judges={"red": Counting(0), "blue": Counting(2, reads_query=reads_query)},
        weights={"red": 1.0, "blue": -0.5},
        gallery=of.heldout.gallery,
    )


def asked(of: Panel) -> int:
    """Scores that its judges gave."""
    return sum(judge.asked for judge in of.judges.values() if isinstance(judge, Counting))
