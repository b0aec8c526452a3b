"""What a job keeps on disk where no mount of its own bounds it: measured and removed, whatever traps it has set."""

import math
import os
import stat
from collections.abc import Sequence

from rlhf.sandbox.tree import ProcessTree, wait_for_helper

MAX_FILES = 20_000
"""Entries in the scratch folder."""
_MAX_DEPTH = 200
_LOOKS = 10
_TRIES = 100
_BLOCKS_PER_MB = 2048


def _program(name: str) -> str:
    return next(path for path in (f"/bin/{name}", f"/usr/bin/{name}") if os.path.exists(path))


def remove(folder: str) -> None:
    """Remove a folder with all that is in it, however deep and whatever its modes. No link is followed."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return
    except OSError:
        # By programs: one can nest folders deeper than Python can recurse. Only root may enter any folder as it is.
        if os.getuid():
            _run("chmod", "-R", "u+rwx", "--", folder)
        _run("rm", "-rf", "--", folder)


def _run(*argv: str) -> None:
    """Run a program to its own end: again, should somebody kill it. OSError when that happens every time."""
    quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (1, 2)]
    for _ in range(_TRIES):
        if not os.WIFSIGNALED(
            wait_for_helper(os.posix_spawn(_program(argv[0]), argv, os.environ, file_actions=quiet))
        ):
            return
    raise OSError(f"{' '.join(argv)} was killed {_TRIES} times")


def disk_use(
    folder: str, tree: ProcessTree, open_files: Sequence[tuple[str, os.stat_result]], *, file_mb: int
) -> float:
    """MB of blocks below `folder`, and in files that its processes hold without a name.

    Infinite beyond MAX_FILES entries, and where it cannot be told: in a folder that may not be entered, or too deep.
    """
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        device = os.fstat(here).st_dev
        blocks: dict[tuple[int, int], int] = {}
        _add_below(here, blocks, 0)
        blocks |= {(s.st_dev, s.st_ino): s.st_blocks for _, s in open_files if s.st_dev == device}
    except (PermissionError, OverflowError):
        return math.inf
    finally:
        os.close(here)
    _add_mapped(tree, folder, blocks, file_mb * _BLOCKS_PER_MB)
    return sum(blocks.values()) / _BLOCKS_PER_MB


def _add_below(here: int, blocks: dict[tuple[int, int], int], depth: int) -> None:
    """Count what is below an open folder. It looks again while names vanish: they may have been moved out of sight."""
    if depth > _MAX_DEPTH:
        raise OverflowError
    for _ in range(_LOOKS):
        has_moved = False
        for name in os.listdir(here):
            try:
                _add_entry(here, name, blocks, depth)
            except (FileNotFoundError, NotADirectoryError):
                has_moved = True
        if not has_moved:
            return


def _add_entry(here: int, name: str, blocks: dict[tuple[int, int], int], depth: int) -> None:
    status = os.stat(name, dir_fd=here, follow_symlinks=False)
    if (status.st_dev, status.st_ino) in blocks:
        return
    if not stat.S_ISDIR(status.st_mode):
        blocks[status.st_dev, status.st_ino] = status.st_blocks
    else:
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
        try:
            status = os.fstat(below)
            blocks[status.st_dev, status.st_ino] = status.st_blocks
            _add_below(below, blocks, depth + 1)
        finally:
            os.close(below)
    if len(blocks) > MAX_FILES:
        raise OverflowError


def _add_mapped(tree: ProcessTree, folder: str, blocks: dict[tuple[int, int], int], most: int) -> None:
    """Count files that are removed and closed, but mapped: as `most` blocks where only root may see how large."""
    counted = {inode for _, inode in blocks}
    for pid, line in tree.maps():
        if folder in line and line.endswith(" (deleted)"):
            span, _, _, _, inode = line.split()[:5]
            if int(inode) not in counted:
                counted.add(int(inode))
                try:
                    blocks[-1, int(inode)] = os.stat(f"/proc/{pid}/map_files/{span}").st_blocks
                except OSError:
                    blocks[-1, int(inode)] = most
