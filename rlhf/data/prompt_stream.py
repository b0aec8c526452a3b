"""Prompts of a source that are read anew each time: none is held."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from rlhf.config.task import SourceConfig
from rlhf.data.prompts import read_prompt
from rlhf.data.sources import read_rows
from rlhf.errors import DataError
from rlhf.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePrompts:
    """The prompts of a source, in its order, as often as they are gone through."""

    source: SourceConfig
    key: str
    """The recipe key of the source."""
    require_reference: bool

    def __iter__(self) -> Iterator[Prompt]:
        for location, row in read_rows(self.source, key=self.key):
            yield read_prompt(
                row, self.source, location=location, key=self.key, require_reference=self.require_reference
            )

    def check_ids(self) -> None:
        """Go through all of them; DataError for two with one id. Eight bytes are held of each."""
        digests = array("Q", map(_digest, self))
        values, counts = np.unique(np.frombuffer(digests, dtype=np.uint64), return_counts=True)
        twice = {int(value) for value in values[counts > 1]}
        if twice:
            name = next(prompt.id for prompt in self if _digest(prompt) in twice)
            raise DataError(f"{self.key}: several rows have the same id {name!r}; ids must be unique.")


def _digest(prompt: Prompt) -> int:
    return int.from_bytes(blake2b(prompt.id.encode(), digest_size=8).digest(), "big")
