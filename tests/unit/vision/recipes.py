"""A small recipe of alignment on the squares of tests/retrievers.py, its plugins, and lists to train on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.config.alignment import AlignmentRecipe
from rlhf.retrieval import PartialOrder, RetrievalQuery
from rlhf.vision.batches import Caption
from rlhf.vision.orders import SEMANTIC, TASTE
from tests.retrievers import COLOURS, SHADES, Squares, tiny_config

HERE = "tests.unit.vision.recipes"
TEXTS = tuple(f"a {shade} {colour} square" for shade in SHADES for colour in COLOURS)


def queries() -> list[RetrievalQuery]:
    """One of each kind of square."""
    return [RetrievalQuery(id=f"q{i}", text=text) for i, text in enumerate(TEXTS)]


def captions(number: int = 32) -> list[Caption]:
    """The first squares and what they show."""
    return [(name, caption_of(name)) for name in list(Squares().ids())[:number]]


def caption_of(name: str) -> str:
    """What a square shows."""
    colour, shade, _ = name.split("-")
    return f"a {shade} {colour} square"


def recipe(**sections: Any) -> AlignmentRecipe:
    """A whole recipe; sections given are merged into it."""
    values: dict[str, Any] = {
        "name": "squares",
        "model": {"config": tiny_config(), "tokenizer": "words", "dtype": "float32"},
        "data": {
            "gallery": {"use": "tests.retrievers:Squares"},
            "queries": {"use": f"{HERE}:queries"},
            "replay": {"use": f"{HERE}:captions"},
        },
        "orders": {"u": 2, "v": 3, "stride": 2},
        "schedule": {"queries_per_step": 4, "replay_per_step": 8},
    }
    for name, section in sections.items():
        both = isinstance(section, Mapping) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **section} if both else section
    return AlignmentRecipe.model_validate(values)


def orders(
    number: int, *, seed: int = 0, u: int = 2, v: int = 3, tied: Sequence[int] = ()
) -> list[PartialOrder]:
    """Lists of random squares for queries in turn; those of the places in `tied` have pairs of their own."""
    draw = np.random.default_rng(seed)
    ids = np.asarray(list(Squares().ids()))
    return [
        PartialOrder(
            query_id=f"q{i}",
            query=TEXTS[i % len(TEXTS)],
            items=tuple(map(str, draw.permutation(ids)[: u * v])),
            shape=(u, v),
            ref_scores=tuple(draw.normal(0, 1, u * v).tolist()),
            teacher={
                SEMANTIC: tuple(sorted(draw.normal(0, 1, u * v).tolist(), reverse=True)),
                TASTE: tuple(draw.normal(0, 1, u * v).tolist()),
            },
            pairs=((0, 1), (0, v)) if i in tied else None,
        )
        for i in range(number)
    ]
