"""Files into and out of a scratch folder whose owner may have left traps: no link is ever followed."""

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any


def put(folder: str, files: Mapping[str, bytes], *, owner: int | None = None) -> str:
    """Write files into the scratch folder, executable; why that failed, or nothing.

    What an earlier step left may be in the way, or fill the disk. Its links are not followed.
    """
    try:
        for name, content in files.items():
            _write_beneath(folder, name, content, owner)
    except OSError as error:
        return str(error)
    return ""


def _write_beneath(folder: str, name: str, content: bytes, owner: int | None) -> None:
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        *folders, last = name.split("/")
        for part in folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
            here = _step_into(here, part, os.O_RDONLY | os.O_DIRECTORY)
            _give(here, owner)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(last, dir_fd=here)
        here = _step_into(here, last, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.fchmod(here, 0o700)
        _give(here, owner)
        with os.fdopen(os.dup(here), "wb") as file:
            file.write(content)
    finally:
        os.close(here)


def _give(descriptor: int, owner: int | None) -> None:
    if owner is not None:
        os.fchown(descriptor, owner, owner)


def _step_into(here: int, name: str, flags: int) -> int:
    """Open `name` below the folder `here`, which is closed; a link is an error."""
    below = os.open(name, flags | os.O_NOFOLLOW, 0o755, dir_fd=here)
    os.close(here)
    return below


def collect(folder: str, names: Sequence[str], room: int, *, owner: int | None = None) -> dict[str, bytes]:
    """The regular files among `names` that lie in `folder` without a link on the way, `room` bytes in all.

    With an `owner` only its files: a second name of somebody else's is not for the job to give away.
    """
    found: dict[str, bytes] = {}
    for name in names:
        with contextlib.suppress(OSError):
            content = _read_beneath(folder, name, room, owner)
            room -= len(content)
            found[name] = content
    return found


def _read_beneath(folder: str, name: str, room: int, owner: int | None) -> bytes:
    parts = [part for part in name.split("/") if part]
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for depth, part in enumerate(parts):
            is_last = depth == len(parts) - 1
            here = _step_into(here, part, os.O_RDONLY | (os.O_NONBLOCK if is_last else os.O_DIRECTORY))
        status = os.fstat(here)
        is_theirs = owner is not None and status.st_uid != owner
        if not stat.S_ISREG(status.st_mode) or status.st_size > room or is_theirs:
            raise OSError(f"{name} is no regular file within {room} bytes")
        with os.fdopen(os.dup(here), "rb") as file:
            return file.read(room)
    finally:
        os.close(here)


def serve(
    folder: str, header: Mapping[str, Any], contents: Sequence[bytes]
) -> tuple[dict[str, Any], list[bytes]]:
    """Obey an order to put or to collect; the answer and the contents that were asked for."""
    if header["do"] == "put":
        problem = put(folder, dict(zip(header["files"], contents, strict=True)), owner=header.get("owner"))
        return {"files": [], "problem": problem}, []
    found = collect(folder, header["collect"], header["collect_bytes"], owner=header.get("owner"))
    return {"files": list(found)}, list(found.values())
