"""Preference pairs and demonstrations that show images, as files of rows."""

import json
from pathlib import Path
from typing import Any

from rlhf.episodes.render import Renderer
from tests.tiny import picture, save_tiny_vision


def seen_rows(folder: Path) -> list[dict[str, Any]]:
    """One image, two, the same one twice, none; answers of unequal length."""
    one, wide, high = picture(folder, 1), picture(folder, 2, (48, 32)), picture(folder, 3, (16, 64))
    shown = [
        ("how many?", [wide]),
        ("a<image>b<image>c", [one, high]),
        ("<image>same<image>", [one, one]),
        ("no picture here", None),
    ]
    return [
        {
            "id": f"row {index}",
            "prompt": shown[index % 4][0],
            "completion": "ab" * (1 + index % 3),
            "chosen": "yes" * (1 + index % 3),
            "rejected": "no" * (1 + index % 5),
        }
        | ({} if shown[index % 4][1] is None else {"images": shown[index % 4][1]})
        for index in range(12)
    ]


def source_of(rows: list[dict[str, Any]], file: Path) -> dict[str, str]:
    """The rows as a source of a recipe."""
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return {"file": str(file)}


def seeing_renderer(folder: Path) -> Renderer:
    """Of the tiny model that sees images, which is written to the folder."""
    return Renderer(model_folder=str(save_tiny_vision(folder)), template="{prompt}")
