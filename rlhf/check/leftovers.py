"""Which files something that was tried has made, changed or removed."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

_MAX_FILES = 20_000
_NUM_NAMED = 5


def files_below(folder: Path) -> dict[str, tuple[int, int]] | None:
    """File -> (size, time of change) below the folder, hidden and compiled ones left out; None for too many."""
    found: dict[str, tuple[int, int]] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        for name in names:
            with contextlib.suppress(OSError):
                path = os.path.join(parent, name)
                status = os.stat(path, follow_symlinks=False)
                found[path] = status.st_size, status.st_mtime_ns
        if len(found) > _MAX_FILES:
            return None
    return found


def changed_files(
    before: Mapping[str, tuple[int, int]] | None, after: Mapping[str, tuple[int, int]] | None
) -> str:
    """The names of what appeared, changed or went; '' for nothing, and where it cannot be told."""
    if before is None or after is None:
        return ""
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    names = ", ".join(os.path.relpath(name) for name in changed[:_NUM_NAMED])
    return names + (f" and {len(changed) - _NUM_NAMED} more" if len(changed) > _NUM_NAMED else "")
