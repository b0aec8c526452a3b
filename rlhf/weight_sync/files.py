"""Weights through one file: shared memory on a machine (cpu), a shared folder across machines (disk).

Layout: a 64-byte header that names the version, then raw tensors, each at a multiple of 64 bytes. The
manifest (name, dtype, shape, offset, checksum of each tensor) travels in the update message, not in the file,
so that file and message must agree.
"""

import mmap
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlhf.errors import SyncError

_ALIGN = 64
_MAGIC = b"rlhf-weights"
_PREFIX = "rlhf-weights"
_SHARED_MEMORY = Path("/dev/shm")


class FileSender:
    """interfaces.WeightSender through a file that lives from `send` to `release`.

    Rank 0 writes; the other ranks only take part in the gathering. `folder` None means shared memory
    (the engines must run on this machine); else a folder that every engine's machine sees.
    """

    def __init__(self, *, run: str, rank: int, folder: Path | None = None) -> None:
        self._run = re.sub(r"[^\w.-]", "_", run)
        self._rank = rank
        self._folder = folder
        self._path: Path | None = None
        if rank == 0:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                for left in folder.glob(
                    f"{_PREFIX}-*"
                ):  # by a killed process of this run: the folder is its own
                    left.unlink()
            for place in _places(folder):
                sweep(place)

    def send(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Mapping[str, Any] | None:
        """Write every tensor; rank 0 returns {path, version, tensors}: the engines' update message."""
        if self._rank != 0:
            for _ in weights:
                pass
            return None
        self.release()
        tensors = [(name, tensor.detach().to("cpu").contiguous()) for name, tensor in weights]
        offsets, size = _layout([tensor.nbytes for _, tensor in tensors])
        self._path = _place_for(self._folder, size) / f"{_PREFIX}-{self._run}-{os.getpid()}-{version}"
        try:
            checksums = _write(
                self._path, [tensor for _, tensor in tensors], offsets=offsets, version=version
            )
        except BaseException:
            self.release()
            raise
        manifest = [
            {
                "name": n,
                "dtype": str(t.dtype).removeprefix("torch."),
                "shape": list(t.shape),
                "offset": o,
                "crc": c,
            }
            for (n, t), o, c in zip(tensors, offsets, checksums, strict=True)
        ]
        return {"path": str(self._path), "version": version, "tensors": manifest}

    def release(self) -> None:
        """Remove the file. Called once every engine has finished, or has failed."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def read_weights(info: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of every manifest entry, checked; the tensors are views of the mapped file.

    A `path` that is a folder is a Hugging Face checkpoint: every tensor of its safetensors files.
    Raises SyncError naming the tensor that is missing or damaged, or both versions where they differ.
    """
    if Path(info["path"]).is_dir():
        yield from _read_checkpoint(Path(info["path"]))
        return
    # Not closed here: views outlive the iteration, and the last of them frees the map.
    mapped = _open(info["path"])
    _check_header(mapped, info)
    for entry in info["tensors"]:
        yield entry["name"], _read_tensor(mapped, entry, info)


def _read_checkpoint(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SyncError(f"{folder} holds no *.safetensors file to load weights from")
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 -- it is no mapping
                    yield name, opened.get_tensor(name)
        except SafetensorError as error:
            raise SyncError(f"{path} cannot be read: {error}") from error


def sweep(folder: Path) -> list[Path]:
    """Remove weight files whose writer (a process of this machine) is dead; returns them."""
    stale = []
    for path in folder.glob(f"{_PREFIX}-*-*-*"):
        pid = path.name.rsplit("-", 2)[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)
            stale.append(path)
    return stale


def _places(folder: Path | None) -> list[Path]:
    if folder is not None:
        # Another machine's process ids say nothing here: a shared folder is cleared by its own run only.
        return []
    return [place for place in (_SHARED_MEMORY, Path(tempfile.gettempdir())) if place.is_dir()]


def _place_for(folder: Path | None, size: int) -> Path:
    if folder is not None:
        return folder
    for place in _places(None):
        if os.access(place, os.W_OK) and shutil.disk_usage(place).free > size:
            return place
    raise SyncError(
        f"weights need {size >> 20} MiB, more than is free in {' and '.join(map(str, _places(None)))}. "
        "Free some, enlarge the container's shared memory, or set sync.kind: disk."
    )


def _layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    offsets, end = [], _ALIGN
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGN) * _ALIGN
    return offsets, end


def _header(version: int) -> bytes:
    return (_MAGIC + b" version %d " % version).ljust(_ALIGN)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _write(path: Path, tensors: Sequence[Tensor], *, offsets: Sequence[int], version: int) -> list[int]:
    checksums = []
    with path.open("wb") as file:
        file.write(_header(version))
        for tensor, offset in zip(tensors, offsets, strict=True):
            data = _bytes(tensor)
            file.seek(offset)
            file.write(data)
            checksums.append(zlib.crc32(data))
        file.flush()
        if path.parent != _SHARED_MEMORY:
            os.fsync(file.fileno())
    return checksums


def _open(path: str) -> mmap.mmap:
    try:
        with Path(path).open("rb") as file:
            # A private writable map: torch refuses to promise that it will not write.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError as error:
        raise SyncError(
            f"there is no weight file {path} on this machine. sync.kind cpu needs learner rank 0 and every "
            "engine on one machine; across machines use disk or nccl."
        ) from error


def _check_header(mapped: mmap.mmap, info: Mapping[str, Any]) -> None:
    found = bytes(mapped[:_ALIGN])
    if found != _header(info["version"]):
        raise SyncError(
            f"weight file {info['path']} is headed {found.decode(errors='replace').strip()!r}, expected "
            f"version {info['version']}: file and update message belong to different syncs."
        )


def _read_tensor(mapped: mmap.mmap, entry: Mapping[str, Any], info: Mapping[str, Any]) -> Tensor:
    name, shape = entry["name"], entry["shape"]
    dtype = getattr(torch, entry["dtype"])
    count = torch.Size(shape).numel()
    end = entry["offset"] + count * dtype.itemsize
    if end > len(mapped):
        raise SyncError(
            f"tensor {name!r} of version {info['version']} was not received: it ends at byte {end} of "
            f"{info['path']}, which has {len(mapped)}."
        )
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    tensor = torch.frombuffer(mapped, dtype=dtype, count=count, offset=entry["offset"]).view(shape)
    found = zlib.crc32(_bytes(tensor))
    if found != entry["crc"]:
        raise SyncError(
            f"tensor {name!r} of version {info['version']} was damaged on the way: checksum {found:08x}, "
            f"the learner sent {entry['crc']:08x}."
        )
    return tensor
