"""A bench in small on the squares of tests/retrievers.py, and its plugins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rlhf.config.alignment_bench import BenchRecipe
from rlhf.retrieval import Verdict
from tests.retrievers import Squares
from tests.unit.vision.recipes import HERE, caption_of, recipe

BENCHES = "tests.unit.vision.benches"


class Paler:
    """A rephraser that asks for what people like."""

    version = "paler"

    def rephrase(self, queries: Sequence[str]) -> list[str]:
        return [text.replace("a ", "a pale ", 1) for text in queries]


@dataclass(frozen=True)
class BrighterRow:
    """A judge of two rows: the brighter one."""

    name: str = "brighter row"
    version: str = "1"

    def compare(self, query: str, row_a: Sequence[Image.Image], row_b: Sequence[Image.Image]) -> Verdict:
        a, b = (float(np.mean([np.asarray(image).mean() for image in row])) for row in (row_a, row_b))
        return "tie" if a == b else "a" if a > b else "b"


def classes(number: int) -> dict[str, list[str]]:
    """The squares by what they show."""
    found: dict[str, list[str]] = {}
    for name in Squares(number).ids():
        found.setdefault(caption_of(name), []).append(name)
    return found


def heldout(half: int) -> dict[str, Any]:
    """What a bench measures on: two colours, every square."""
    there = "tests.retrievers"
    return {
        "top_k": 4,
        "gallery": {"use": f"{there}:squares", "kwargs": {"number": 3 + half}},
        "queries": {"use": f"{there}:colour_queries", "kwargs": {"half": half}},
        "truth": {"use": f"{there}:SquaresTruth"},
        "captions": {"use": f"{HERE}:captions", "kwargs": {"number": 8}},
        "classes": {"use": f"{BENCHES}:classes", "kwargs": {"number": 2}},
    }


def bench_values(**sections: Any) -> dict[str, Any]:
    """A bench as its file says it; sections given are merged into it, None takes one away."""
    alignment = recipe(
        pretrain={
            "captions": {"use": f"{HERE}:captions"},
            "num_steps": 4,
            "batch_size": 8,
            "warmup_steps": 0,
        },
        judges={"brightness": {"use": "tests.retrievers:Brightness"}},
        rephraser={"use": f"{BENCHES}:Paler"},
        schedule={"num_steps": 2, "queries_per_step": 4, "replay_per_step": 8},
        learner={"lr": 1e-3},
    )
    values: dict[str, Any] = {
        "name": "squares_bench",
        "alignment": alignment.model_dump(mode="json", exclude_defaults=True),
        "rows": {"rp_pl": {"beta": [0.5, 1.0]}, "sft": {"lr": [1e-4, 1e-3], "queries_per_step": 8}},
        "seeds": 2,
        "validation": heldout(0),
        "test": heldout(1),
        "pair_judge": {"use": f"{BENCHES}:BrighterRow"},
        "cascade": [6, 12],
        "workers": 1,
    }
    for name, section in sections.items():
        both = isinstance(section, Mapping) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **section} if both else section
    return values


def bench(**sections: Any) -> BenchRecipe:
    """A whole bench."""
    return BenchRecipe.model_validate(bench_values(**sections))
