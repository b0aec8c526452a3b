"""A tiny dual encoder, and a gallery of flat colours, for tests of retrieval alignment."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import yaml
from PIL import Image

from rlhf.config.schema import ModelConfig
from rlhf.retrieval import RetrievalQuery
from rlhf.vision.model_folder import prepare_dual_encoder

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "yellow": (230, 220, 40)}
SHADES = ("dark", "pale")


def tiny_config(kind: str = "clip", *, width: int = 64, layers: int = 1) -> dict[str, Any]:
    """`model.config` of a dual encoder of 16 x 16 pictures."""
    tower = {
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }
    extra = {"projection_dim": width} if kind == "clip" else {}
    text = {**tower, **extra, "max_position_embeddings": 16}
    if kind != "clip":
        text["projection_size"] = width
    vision = {**tower, **extra, "image_size": 16, "patch_size": 8}
    return {"model_type": kind, "text_config": text, "vision_config": vision, **extra}


def tiny_dual_encoder(folder: Path, *, kind: str = "clip", seed: int = 0, layers: int = 1) -> str:
    """Its folder, with tokenizer and image processor."""
    model = ModelConfig(config=tiny_config(kind, layers=layers), tokenizer="words", dtype="float32")
    texts = [f"a {shade} {colour} square" for shade in SHADES for colour in COLOURS]
    return prepare_dual_encoder(model, folder, texts=texts, seed=seed)


@dataclass(frozen=True)
class Squares:
    """Pictures of one noisy colour: `red-dark-3`."""

    number: int = 8
    version: str = "squares-1"

    def ids(self) -> Sequence[str]:
        return [f"{c}-{s}-{i}" for i in range(self.number) for c in COLOURS for s in SHADES]

    def load(self, ids: Sequence[str]) -> list[Image.Image]:
        return [_picture(name) for name in ids]


def _picture(name: str) -> Image.Image:
    colour, shade, _ = name.split("-")
    base = np.asarray(COLOURS[colour], float) * (0.5 if shade == "dark" else 1.0)
    noise = np.random.default_rng(crc32(name.encode())).normal(0, 20, (16, 16, 3))
    return Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))


def squares(number: int = 8) -> Squares:
    """The gallery, as a recipe names it."""
    return Squares(number=number)


def colour_queries(half: int = 0) -> list[RetrievalQuery]:
    """Two of the four colours."""
    return [RetrievalQuery(id=c, text=f"a {c} square") for c in list(COLOURS)[2 * half : 2 * half + 2]]


def square_captions() -> list[tuple[str, str]]:
    """(image id, caption) of all squares."""
    found = [name.split("-") for name in Squares().ids()]
    return [("-".join(parts), f"a {parts[1]} {parts[0]} square") for parts in found]


@dataclass(frozen=True)
class SquaresTruth:
    """Relevant is the colour; people like it pale."""

    def relevant(self, query: RetrievalQuery, ids: Sequence[str]) -> list[bool]:
        return [name.split("-")[0] == query.id for name in ids]

    def taste(self, ids: Sequence[str]) -> list[float]:
        return [float(name.split("-")[1] == "pale") for name in ids]


@dataclass(frozen=True)
class Brightness:
    """A judge: mean brightness; NaN where it is asked to break, a nap where it is asked to hang."""

    is_broken: bool = False
    nap_s: float = 0.0
    name: str = "brightness"
    version: str = "1"
    reads_query: bool = False

    def score(self, images: Sequence[Image.Image], queries: Sequence[str] | None = None) -> list[float]:
        time.sleep(self.nap_s)
        return [math.nan if self.is_broken else float(np.asarray(image).mean()) for image in images]


def alignment_recipe(folder: Path, *overrides: str) -> list[str]:
    """Arguments of `rlhf vision train` for a small run in `folder`; `overrides` have the last word."""
    here = "tests.retrievers"
    sections = {
        "name": "squares",
        "run_dir": str(folder / "run"),
        "model": {"config": tiny_config(), "tokenizer": "words", "dtype": "float32"},
        "data": {
            "gallery": {"use": f"{here}:squares"},
            "queries": {"use": f"{here}:colour_queries"},
            "replay": {"use": f"{here}:square_captions"},
        },
        "judges": {"brightness": {"use": f"{here}:Brightness"}},
        "orders": {"u": 2, "v": 3, "stride": 1, "gallery_share": 0.5},
        "schedule": {"num_steps": 4, "queries_per_step": 4, "replay_per_step": 16},
        "learner": {"lr": 1e-3},
        "engine": {"kind": "hf"},
        "placement": {"num_cpus": 2},
        "checkpoint": {"every": 2, "keep": 9},
        "telemetry": {"live": False},
        "eval": {
            "every": 2,
            "top_k": 4,
            "gallery": {"use": f"{here}:squares"},
            "queries": {"use": f"{here}:colour_queries", "kwargs": {"half": 1}},
            "truth": {"use": f"{here}:SquaresTruth"},
            "captions": {"use": f"{here}:square_captions"},
        },
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(sections))
    return [str(file), *overrides, "--code-dir", str(Path(__file__).parents[1])]
