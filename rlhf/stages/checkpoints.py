"""Model folders on disk, tensor by tensor: none is ever whole in memory."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf.errors import ModelError

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorFact:
    """What is known of a stored tensor without reading it."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None: not a floating type."""


class Weights:
    """The tensors of one folder by name; each is read when it is asked for."""

    def __init__(self, files: list[Path], label: str) -> None:
        self.label = label
        self.facts: dict[str, TensorFact] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 -- the file is no mapping
                    part = opened.get_slice(name)
                    shape, dtype = tuple(part.get_shape()), _DTYPES.get(part.get_dtype())
                    self.facts[name] = TensorFact(file, shape, dtype)

    @classmethod
    def of_model(cls, folder: str, *, key: str) -> "Weights":
        """Of a Hugging Face folder. ModelError where it has no safetensors."""
        path = Path(folder)
        files = [path / _SINGLE]
        if (path / INDEX).is_file():
            listed = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
            files = [path / name for name in sorted(set(listed))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(f"{key}: {folder!r} has no {missing[0]}; expected weights as safetensors.")
        return cls(files, f"{key} ({folder})")

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored."""
        with safe_open(self.facts[name].file, framework="pt") as opened:
            found: Tensor = opened.get_tensor(name)
        return found


def write_weights(folder: Path, tensors: Iterator[tuple[str, Tensor]], *, shard_bytes: int) -> int:
    """Write tensors as they come, in files of at most `shard_bytes` (or one tensor), with their index; how many."""
    shard: dict[str, Tensor] = {}
    files: list[list[str]] = []
    total = held = 0

    def flush() -> None:
        nonlocal shard, held
        save_file(shard, folder / f"part-{len(files)}.safetensors", metadata={"format": "pt"})
        files.append(list(shard))
        shard, held = {}, 0

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if shard and held + size > shard_bytes:
            flush()
        shard[name] = tensor.contiguous()
        total, held = total + size, held + size
    flush()
    _name_files(folder, files, total)
    return sum(map(len, files))


def _name_files(folder: Path, files: list[list[str]], total: int) -> None:
    if len(files) == 1:
        (folder / "part-0.safetensors").rename(folder / _SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        (folder / f"part-{number}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1))
