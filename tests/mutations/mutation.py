"""One planted bug, and how it gets into a file."""

from dataclasses import dataclass


class StaleMutationError(ValueError):
    """The text that a bug replaces is not in its file exactly once: the table must follow the code."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """`old` becomes `new` in `file`; one of `tests` must fail, unless `equivalent` says why none can."""

    name: str
    old: str
    new: str
    file: str
    tests: tuple[str, ...]
    equivalent: str | None = None
    """The proof that the program is the same, in a sentence; None for a bug."""

    def applied(self, source: str) -> str:
        """`source` with the bug in it. Raises StaleMutationError."""
        found = source.count(self.old)
        if found != 1:
            raise StaleMutationError(
                f"{self.name!r}: its old text is {found} times in {self.file}, expected once: {self.old!r}"
            )
        return source.replace(self.old, self.new)
