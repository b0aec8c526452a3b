"""What decides whether a stage has to run again: its settings, its inputs and the files it names."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rlhf.config.pipeline import Values
from rlhf.config.references import Reference, replaced
from rlhf.config.stage_kinds import NOT_LEARNED
from rlhf.content_hashes import ContentHashes
from rlhf.pipeline.graph import Stage

_CODE = re.compile(r"(?P<file>.+\.py):[A-Za-z_]\w*|(?P<module>[A-Za-z_][\w.]*):[A-Za-z_]\w*")
_PATH_KEYS = {
    "file",
    "path",
    "tokenizer",
    "chat_template",
    "reference",
    "model",
    "base",
    "adapter",
    "dataset",
}
_PATHS = "teachers"
"""The key of a mapping whose values are paths."""
_DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".jinja", ".txt", ".csv")
SHORT = 8
"""Hex digits of a key in a folder's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A stage's key and all that went into it, by name."""

    key: str
    settings: Values
    """Every setting that enters the key, defaults written out: for telling what changed."""
    inputs: Mapping[str, str]
    """Reference -> hash of the artefact."""
    files: Mapping[str, str]
    """Named file or model folder -> hash."""
    code: Mapping[str, str]
    """`module:attribute` -> hash of its file; recorded, no part of the key."""

    def folder(self, stage: str) -> str:
        """The stage's folder below the pipeline's."""
        return f"stages/{stage}-{self.key[:SHORT]}"


def identity_of(
    stage: Stage, artefacts: Mapping[Reference, str], hashes: ContentHashes, *, code_dir: Path
) -> Identity:
    """The identity of a stage whose inputs have the hashes `artefacts`."""
    said = learned(stage.said)
    inputs = {str(need): artefacts[need] for need in stage.needs}
    files, code = {}, {}
    for key, text in _strings(said):
        if (source := _source_of(text, code_dir)) is not None:
            code[text] = hashes.of(source)
        elif _is_data(key, text):
            files[text] = hashes.of(Path(text))
    seeds = {} if stage.model_seed is None else {"model_seed": stage.model_seed}
    content = replaced(said, lambda reference: artefacts[stage.written[reference]]) | seeds
    whole = {"kind": stage.kind, "settings": content, "files": files}
    key = sha256(json.dumps(whole, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    settings = learned(stage.settings) | seeds
    return Identity(key=key, settings=settings, inputs=inputs, files=files, code=code)


def learned(settings: Values) -> Values:
    """The settings without those that only say where and how fast a stage runs."""
    return _without(settings, "")


def missing_files(stage: Stage) -> Iterator[tuple[str, str]]:
    """(key, path) of data files that a stage names and that are not there."""
    for key, text in _strings(stage.said):
        if key.rpartition(".")[2] == "file" and "${" not in text and not Path(text).exists():
            yield key, text


def _without(values: Values, prefix: str) -> Values:
    """A section of which nothing is left goes, too: one that says nothing else is as if it were not there."""
    kept: Values = {}
    for key, value in values.items():
        if f"{prefix}{key}" in NOT_LEARNED:
            continue
        inner = _without(value, f"{prefix}{key}.") if isinstance(value, dict) else value
        if inner or not value or not isinstance(value, dict):
            kept[key] = inner
    return kept


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    inner: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        inner = iter(value.items())
    elif isinstance(value, (list, tuple)):
        inner = iter(enumerate(value))
    for name, below in inner:
        yield from _strings(below, f"{key}.{name}".lstrip("."))


def _is_data(key: str, text: str) -> bool:
    if "${" in text or "\n" in text or len(text) > 1000:
        return False
    *above, last = key.split(".")
    is_path = last in _PATH_KEYS or above[-1:] == [_PATHS] or "/" in text or text.endswith(_DATA_SUFFIXES)
    return is_path and Path(text).exists()


def _source_of(text: str, code_dir: Path) -> Path | None:
    """The file of what a `module:attribute` or a path to a script names, found without importing anything."""
    if text.endswith(".py") and Path(text).is_file():
        return Path(text)
    match = _CODE.fullmatch(text)
    if match is None:
        return None
    if match["file"] is not None:
        candidates = [Path(match["file"])]
    else:
        parts = match["module"].split(".")
        roots = [code_dir, *map(Path, sys.path)]
        modules = [root.joinpath(*parts) for root in roots]
        candidates = [c for m in modules for c in (m.with_suffix(".py"), m / "__init__.py")]
    return next((file for file in candidates if file.is_file()), None)
