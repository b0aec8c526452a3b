"""Hashes of what files and model folders hold, remembered as long as size and time of a file stay the same."""

import hashlib
import json
from pathlib import Path

from rlhf.config.stage_kinds import KINDS
from rlhf.run_folder import replace_file

CACHE = "hashes.json"
_MODEL_SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".model", ".py", ".bin", ".gguf"}
_BOOKKEEPING = {*(f"{kind}.json" for kind in KINDS), "training_args.bin", "trainer_state.json"}
"""What trainers leave beside a model: times and settings, which two equal models need not share."""


class ContentHashes:
    """sha256 of files and folders. A file is read again only when its size or its time of change is another."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / CACHE
        self._known: dict[str, list[object]] = {}
        if self._file.is_file():
            self._known = json.loads(self._file.read_text(encoding="utf-8"))
        self._is_new = False

    def of(self, path: Path) -> str:
        """The hash of a file, or of a folder's files by their names. OSError when it is not there."""
        if not path.is_dir():
            return self._of_file(path)
        digest = hashlib.sha256()
        for file in _files(path):
            digest.update(f"{file.relative_to(path).as_posix()} {self._of_file(file)}\n".encode())
        return digest.hexdigest()

    def of_model(self, name: str) -> str:
        """The hash of a model's folder; a hub name as it is."""
        return self.of(Path(name)) if Path(name).is_dir() else name

    def save(self) -> None:
        """Write down what was read since."""
        if self._is_new:
            replace_file(self._file, json.dumps(self._known, indent=0))
            self._is_new = False

    def _of_file(self, path: Path) -> str:
        found = path.stat()
        stamp = [found.st_size, found.st_mtime_ns]
        name = str(path.resolve())
        if (known := self._known.get(name)) is not None and known[:2] == stamp:
            return str(known[2])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._known[name] = [*stamp, digest]
        self._is_new = True
        return digest


def _files(folder: Path) -> list[Path]:
    """The files that make a folder what it is: of a model's only those that a loader reads."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return files
    return [path for path in files if path.suffix in _MODEL_SUFFIXES and path.name not in _BOOKKEEPING]
