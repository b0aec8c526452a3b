"""What a dual encoder (CLIP, SigLIP) is given: a text as ids, a picture as pixels."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.data.images import open_image
from rlhf.data.scoring_models import is_dual
from rlhf.errors import DataError, ModelError

if TYPE_CHECKING:
    from torch import Tensor


class DualInputs:
    """Tokenizer and image processor of a dual encoder's folder."""

    def __init__(self, folder: str | Path, *, trust_remote_code: bool = False) -> None:
        """Raises ModelError where the folder lacks one of them."""
        from transformers import AutoTokenizer

        from rlhf.data.dual_encoder import preparation_of

        self._config = folder_config(folder)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
            self._processor: Any = preparation_of(str(folder))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"model: {str(folder)!r} has no tokenizer or no image processor that can be loaded ({error})."
            ) from error

    @property
    def longest(self) -> int:
        """Most tokens of a text."""
        return int(self._config.get("text_config", {}).get("max_position_embeddings", 77))

    def text_ids(self, text: str, *, where: str) -> list[int]:
        """Ids of a text up to its eos token, from which CLIP reads; DataError where they are too many. None is cut.

        SigLIP reads from the last position, and its texts are padded up to there.
        """
        found: list[int] = self._tokenizer(text)["input_ids"]
        ends = self._config["model_type"] == "clip"
        if ends and (not found or found[-1] != self._tokenizer.eos_token_id):
            found = [*found, self._tokenizer.eos_token_id]
        if len(found) > self.longest:
            raise DataError(
                f"{where} has {len(found)} tokens, and the model reads {self.longest} at most. Texts are never cut: "
                "shorten it, or leave it out."
            )
        return found

    def texts(self, rows: Sequence[Sequence[int]]) -> Mapping[str, "Tensor"]:
        """`input_ids` and `attention_mask` of texts as ids."""
        import torch

        whole = self._config["model_type"] == "siglip"
        width = self.longest if whole else max(map(len, rows))
        pad = self._tokenizer.pad_token_id or 0
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : width if whole else len(row)] = 1  # SigLIP has learned to see its padding
        return {"input_ids": ids, "attention_mask": mask}

    def pictures(self, references: Sequence[str]) -> "Tensor":
        """Pixels [I, channels, height, width]."""
        found: Tensor = self._processor(images=[open_image(r) for r in references], return_tensors="pt")[
            "pixel_values"
        ]
        return found


def folder_config(folder: str | Path) -> Mapping[str, Any]:
    """The config.json of a folder; empty where there is none."""
    file = Path(folder) / "config.json"
    found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def is_dual_folder(folder: str | Path) -> bool:
    """Whether a folder holds a dual encoder."""
    return is_dual(folder_config(folder))
