"""`manifest.json`: which folder holds each stage's present result, and what every result was made from."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhf.config.pipeline import Values
from rlhf.content_hashes import ContentHashes
from rlhf.pipeline.identity import Identity
from rlhf.pipeline.result import Result, read_result
from rlhf.run_folder import replace_file

FILE = "manifest.json"
_SHOWN = 3
State = Literal["done", "to do", "resumes", "waits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A complete result and what it was made from."""

    stage: str
    kind: str
    key: str
    artefacts: Mapping[str, str]
    """Name -> hash."""
    seconds: float
    settings: Values
    inputs: Mapping[str, str]
    files: Mapping[str, str]
    code: Mapping[str, str]
    versions: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a stage has to run, and why."""

    state: State
    why: str = ""
    altered: bool = False
    """Its folder must be put aside first: it holds another result than was written down, or one that is to stay."""


@dataclass(slots=True)
class Manifest:
    """The state of a pipeline's folder. Changes are on disk when `save` returns."""

    folder: Path
    present: dict[str, str] = field(default_factory=dict)
    """Stage -> folder of its present result."""
    records: dict[str, Record] = field(default_factory=dict)
    """Folder -> what is in it; also results of other settings, which stay."""

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """What the folder's manifest says; an empty one where there is none."""
        file = folder / FILE
        if not file.is_file():
            return cls(folder)
        values = json.loads(file.read_text(encoding="utf-8"))
        records = {name: Record(**record) for name, record in values["results"].items()}
        return cls(folder, present=dict(values["stages"]), records=records)

    def save(self) -> None:
        """Write the manifest in one rename."""
        values = {
            "stages": self.present,
            "results": {name: asdict(record) for name, record in self.records.items()},
        }
        replace_file(self.folder / FILE, json.dumps(values, indent=1, ensure_ascii=False))

    def judge(self, stage: str, identity: Identity, hashes: ContentHashes) -> Verdict:
        """Whether the stage's result is there, whole and as it was written down."""
        folder = identity.folder(stage)
        result = read_result(self.folder / folder)
        if result is None or result.key != identity.key:
            has_begun = (self.folder / folder / "stage.yaml").is_file()
            why = self._changes(stage, identity)
            return Verdict(state="resumes" if has_begun else "to do", why=why)
        record = self.records.get(folder)
        for name, path in result.artefacts.items():
            if not (self.folder / folder / path).exists():
                return Verdict(state="to do", why=f"{folder}/{path} is gone")
            if record is not None and hashes.of(self.folder / folder / path) != record.artefacts.get(name):
                return Verdict(state="to do", why=f"{folder}/{path} was altered", altered=True)
        changed = ", ".join(self.code_changes(folder, identity))
        kept = f"kept, although the code of {changed} has changed since (--redo runs it again)"
        return Verdict(state="done", why=kept if changed else "")

    def adopt(
        self, stage: str, identity: Identity, hashes: ContentHashes, versions: Callable[[], Values]
    ) -> Record:
        """Write down a complete result, unless it is already, as the stage's present one."""
        folder = identity.folder(stage)
        if folder not in self.records:
            result = read_result(self.folder / folder)
            assert result is not None
            self.records[folder] = Record(
                stage=stage,
                kind=result.kind,
                key=identity.key,
                artefacts={n: hashes.of(self.folder / folder / path) for n, path in result.artefacts.items()},
                seconds=result.seconds,
                settings=identity.settings,
                inputs=identity.inputs,
                files=identity.files,
                code=identity.code,
                versions=versions(),
            )
        self.present[stage] = folder
        return self.records[folder]

    def put_aside(self, folder: str) -> None:
        """Rename a stage's folder, so that the stage starts afresh and nothing is overwritten."""
        path = self.folder / folder
        number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.old-{n}").exists())
        if path.exists():
            os.rename(path, path.with_name(f"{path.name}.old-{number}"))
        self.forget(folder)

    def forget(self, folder: str) -> None:
        """Take out what was written down of a folder: what is made in it now may have other hashes."""
        if self.records.pop(folder, None) is not None:
            self.save()

    def result(self, stage: str) -> Result | None:
        """The present result of a stage."""
        return None if stage not in self.present else read_result(self.folder / self.present[stage])

    def artefact(self, stage: str, name: str) -> Path:
        """Where an artefact of a stage that is done lies."""
        result = self.result(stage)
        assert result is not None
        return self.folder / self.present[stage] / result.artefacts[name]

    def _changes(self, stage: str, identity: Identity) -> str:
        record = self.records.get(self.present.get(stage, ""))
        if record is None:
            return "never finished"
        changes = [
            f"{key} {_brief(old)} -> {_brief(new)}"
            for key, old, new in differing(record.settings, identity.settings)
        ]
        changes += [f"{name} has changed" for name in _other(record.inputs, identity.inputs)]
        changes += [f"{name} has changed" for name in _other(record.files, identity.files)]
        if len(changes) > _SHOWN:
            changes[_SHOWN:] = [f"and {len(changes) - _SHOWN} more"]
        return ", ".join(changes) or "its result was made by another version of this package"

    def code_changes(self, folder: str, identity: Identity) -> list[str]:
        """Functions and classes whose code is not what the result in `folder` was made with."""
        record = self.records.get(folder)
        return [] if record is None else _other(record.code, identity.code)


def differing(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, before, now) of every leaf that is not the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from differing(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif before != now:
        yield key, before, now


def _other(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name, digest in now.items() if name in before and before[name] != digest]


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
