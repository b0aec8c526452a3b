"""`${stage}` and `${stage.artefact}`: how a stage of a pipeline names what another one leaves."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """An artefact of a stage; `artefact` "" is the stage's main one."""

    stage: str
    artefact: str = ""

    def __str__(self) -> str:
        return "${" + ".".join(filter(None, (self.stage, self.artefact))) + "}"


def references_in(value: Any) -> Iterator[tuple[str, Reference]]:
    """(dotted key, reference) for every one that stands in a string of `value`, keys of mappings left out."""
    yield from _walk(value, "")


def only_reference(value: Any) -> Reference | None:
    """The reference that is all of `value`; None for anything else."""
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else _parsed(match[1])


def replaced(value: Any, by: Callable[[Reference], str]) -> Any:
    """A copy of `value` with every reference in its strings replaced."""
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: by(_parsed(match[1])), value)
    if isinstance(value, Mapping):
        return {key: replaced(inner, by) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [replaced(inner, by) for inner in value]
    return value


def _walk(value: Any, key: str) -> Iterator[tuple[str, Reference]]:
    if isinstance(value, str):
        yield from ((key, _parsed(match[1])) for match in _REFERENCE.finditer(value))
        return
    inner: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        inner = iter(value.items())
    elif isinstance(value, (list, tuple)):
        inner = iter(enumerate(value))
    for name, below in inner:
        yield from _walk(below, f"{key}.{name}".lstrip("."))


def _parsed(text: str) -> Reference:
    stage, _, artefact = text.strip().partition(".")
    return Reference(stage, artefact)
