"""Lets a process reach only the files it was given: Landlock, which needs no privilege (Linux 5.13 and later)."""

import ctypes
import errno
import os
import stat
from collections.abc import Sequence
from functools import cache

from rlhf.sandbox import kernel

SCOPED_SIGNALS = 6
"""The first ABI that keeps signals and abstract Unix sockets inside."""

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_BITS_BY_ABI = (0, 13, 14, 15, 15, 16)
"""How many kinds of file access an ABI knows (refer from 2, truncate from 3, ioctl on devices from 5)."""
_BIND_AND_CONNECT_TCP = 0b11
_SCOPE_SOCKETS_AND_SIGNALS = 0b11
_VERSION_QUERY = 1
_RULE_PATH_BENEATH = 1
_LACKING = (
    (2, "moving files between folders"),
    (3, "truncating files that may be read"),
    (4, "TCP"),
    (5, "ioctl on devices"),
    (6, "signals to other processes and abstract Unix sockets"),
)


class _RulesetAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "scopes")]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("descriptor", ctypes.c_int32)]


_ABSENCE = {
    errno.ENOSYS: "this kernel has no Landlock (Linux 5.13 or later, built with CONFIG_SECURITY_LANDLOCK)",
    errno.EOPNOTSUPP: "Landlock was not switched on when this kernel was started (lsm=landlock,...)",
    errno.EPERM: "the container's seccomp profile denies Landlock's calls",
}


def abi() -> int:
    """The version of Landlock that this kernel has; 0: none, and `absence` says why."""
    return _query()[0]


def absence() -> str:
    """Why there is no Landlock here; empty where there is."""
    version, code = _query()
    return "" if version else _ABSENCE.get(code, f"landlock_create_ruleset: {os.strerror(code)}")


@cache
def _query() -> tuple[int, int]:
    size, flags = ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_QUERY)
    try:
        return kernel.call("landlock_create_ruleset", None, size, flags), 0
    except OSError as error:
        return 0, error.errno or errno.ENOSYS


def lacking(version: int) -> tuple[str, ...]:
    """What this version leaves to seccomp."""
    return tuple(what for first, what in _LACKING if version < first)


def restrict(*, readable: Sequence[str], writable: Sequence[str]) -> None:
    """Allow reading and executing below `readable`, everything below `writable`, and nothing else, for good.

    Paths that do not exist are left out. Needs no_new_privs. OSError where the kernel has no Landlock.
    """
    version = abi()
    every = (1 << _BITS_BY_ABI[min(version, len(_BITS_BY_ABI) - 1)]) - 1
    attributes = _RulesetAttributes(
        every,
        _BIND_AND_CONNECT_TCP if version >= 4 else 0,
        _SCOPE_SOCKETS_AND_SIGNALS if version >= SCOPED_SIGNALS else 0,
    )
    size = ctypes.c_size_t(24 if version >= SCOPED_SIGNALS else 16 if version >= 4 else 8)
    ruleset = kernel.call("landlock_create_ruleset", ctypes.byref(attributes), size, ctypes.c_uint32(0))
    try:
        for paths, allowed in ((readable, _READ), (writable, every)):
            for path in paths:
                _allow(ruleset, path, allowed & every)
        kernel.call("landlock_restrict_self", ruleset, ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, allowed: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            allowed &= _OF_FILES
        rule = _PathBeneath(allowed, descriptor)
        kernel.call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), ctypes.c_uint32(0))
    finally:
        os.close(descriptor)
