"""Pictures, captions, queries, votes and a head, laid out as the recipes of alignment want them; and a served model."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from tests.unit.rewards.served_models import chat

NUM_PHOTOS, NUM_CAPTIONS = 60, 300
WIDTH = 768
COLOURS = ("red", "green", "blue", "yellow")


def write_data(folder: Path) -> None:
    """All files of a folder `data`."""
    photos = _pictures(folder / "photos", "a", NUM_PHOTOS)
    captions = [
        (photos[i % NUM_PHOTOS], f"a {COLOURS[i % 4]} square, number {i}") for i in range(NUM_CAPTIONS)
    ]
    _rows(folder / "photos/captions.jsonl", [{"image": name, "caption": text} for name, text in captions])
    _rows(folder / "queries.jsonl", [{"query": f"a {colour} square"} for colour in COLOURS])
    shown, others = _pictures(folder / "heldout", "hpir", 8), _pictures(folder / "heldout", "others", 6)
    _rows(
        folder / "heldout/captions.jsonl",
        [{"image": name, "caption": f"a square, {name}"} for name in others],
    )
    _rows(folder / "heldout_queries.jsonl", [{"query": "a dark square", "relevant": others[:2]}])
    votes = {"aesthetic": {"a": 7, "b": 3}}
    choice = {"query": "a beautiful square", "a": shown[:4], "b": shown[4:], "votes": votes}
    _rows(folder / "hpir.jsonl", [choice])
    weight = np.random.default_rng(0).normal(size=(1, WIDTH)).astype(np.float32)
    save_file({"layers.0.weight": weight}, folder / "laion_l14.safetensors")


def played(body: dict[str, Any]) -> dict[str, Any]:
    """What an embedding model, a judge and a rephraser would say, by what is asked."""
    content = body["messages"][-1]["content"]
    draw = random.Random(json.dumps(content[-1])) if isinstance(content, list) else random.Random(0)
    if "encoding_format" in body:
        return {"data": [{"embedding": [draw.gauss(0, 1) for _ in range(WIDTH)]}]}
    if isinstance(content, list):
        return chat(f"VERDICT: {draw.randint(1, 5)}")
    return chat(f"{content}, soft light")


def _pictures(folder: Path, below: str, number: int) -> list[str]:
    """Their ids."""
    (folder / below).mkdir(parents=True)
    names = [f"{below}/{i}.png" for i in range(number)]
    draw = np.random.default_rng(number)
    for name in names:
        Image.fromarray(draw.integers(0, 256, (16, 24, 3), np.uint8)).save(folder / name)
    return names


def _rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
