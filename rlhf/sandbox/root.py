"""The minimal file system of the `namespaces` tier: interpreter and system, read-only; nothing else of the host.

Built once per launcher in a mount namespace of its own; every job adds its scratch folder and process table.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf.sandbox import kernel

SCRATCH = "/work"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SETTINGS = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d")
_DEVICES = ("null", "full", "random", "urandom")
_ZEROS = 1 << 40
_WRITTEN = {
    "passwd": "root:x:0:0::/:/bin/sh\nsandbox:x:1000:1000::/work:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "group": "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_STREAMS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_BASE = "/tmp"  # any folder that exists on every host: it is covered in our own mount namespace only


def readable_paths(more: Sequence[str]) -> list[str]:
    """What programs may read in every tier that isolates files: the system, this interpreter, and folders `more`."""
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, *more}
    prefixes |= {os.path.dirname(os.path.realpath(sys.executable))}
    outside = sorted(p for p in prefixes if not _is_within(p, "/usr"))
    kept = [p for p in outside if not any(p != q and _is_within(p, q) for q in outside)]
    return [path for path in (*_SYSTEM, *_SETTINGS, *kept) if os.path.lexists(path)]


def _is_within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def build(readable: Sequence[str]) -> None:
    """Make a root that shows `readable` the root of this process, which must have a mount namespace of its own."""
    shown = [(path, os.path.realpath(path)) for path in readable]
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE, "")
    kernel.mount("tmpfs", _BASE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=4m")
    for name in ("new", "old"):
        os.mkdir(f"{_BASE}/{name}")
    kernel.pivot_root(_BASE, f"{_BASE}/old")
    os.chdir("/")
    kernel.mount("/new", "/new", "", kernel.MS_BIND, "")
    for path, real in shown:
        _show(path, real)
    _fill()
    os.chdir("/new")
    kernel.pivot_root(".", ".")
    kernel.umount_detach(".")
    os.chdir("/")
    kernel.set_mount_readonly("/", recursive=False)


def _show(path: str, real: str) -> None:
    """Let `path` of the host be seen at its own place, read-only; a link stays a link to what is seen, too."""
    if os.path.lexists(f"/new{path}"):
        return
    if path != real:
        _parent(f"/new{path}")
        if os.path.islink(f"/old{path}"):
            os.symlink(os.readlink(f"/old{path}"), f"/new{path}")
        else:
            os.symlink(real, f"/new{path}")
        if os.path.lexists(f"/new{real}"):
            return
    _bind(f"/old{real}", f"/new{real}")


def _bind(source: str, target: str, *, readonly: bool = True) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        _parent(target)
        Path(target).touch()
    kernel.mount(source, target, "", kernel.MS_BIND | kernel.MS_REC, "")
    if readonly:
        kernel.set_mount_readonly(target, recursive=True, proc="/old/proc")


def _parent(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)


def _fill() -> None:
    for name in ("proc", "dev", "etc", SCRATCH[1:]):
        os.makedirs(f"/new/{name}", exist_ok=True)
    if not os.path.lexists("/new/tmp"):
        os.symlink(SCRATCH, "/new/tmp")
    for name, text in _WRITTEN.items():
        Path(f"/new/etc/{name}").write_text(text)
    # The host's table stays visible to the monitors; a job covers it with its own, or with nothing.
    _bind("/old/proc", "/new/proc", readonly=False)
    for name in _DEVICES:
        _bind(f"/old/dev/{name}", f"/new/dev/{name}", readonly=False)
    # A file with nothing in it instead of the device: mapped for writing, that is memory which no watcher sees.
    with open("/new/dev/zero", "wb") as zero:
        zero.truncate(_ZEROS)
    for name, target in _STREAMS.items():
        os.symlink(target, f"/new/dev/{name}")
    os.symlink(SCRATCH, "/new/dev/shm")


def enter_job(*, disk_mb: int, files: int, owner: int) -> bool:
    """Add a job's scratch folder and process table; whether the job has a table. In the job's own namespaces."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE, "")
    options = f"size={disk_mb}m,nr_inodes={files},mode=700,uid={owner},gid={owner}"
    kernel.mount("tmpfs", SCRATCH, "tmpfs", flags, options)
    try:
        kernel.mount("proc", "/proc", "proc", flags | kernel.MS_NOEXEC, "")
    except OSError:
        # Containers mask parts of /proc; a user namespace may then not mount another.
        kernel.mount(
            "tmpfs", "/proc", "tmpfs", flags | kernel.MS_NOEXEC | kernel.MS_RDONLY, "size=0,mode=555"
        )
        return False
    return True
