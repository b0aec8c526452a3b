"""The kernel's calls that Python does not wrap; each failure is an OSError with its name. Linux, x86-64 and aarch64.

Kernels before 5.12 lack `mount_setattr`, those before 5.9 `close_range`: older calls then do the same.
"""

import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import Container, Iterator

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2

_READONLY = MS_RDONLY | MS_NOSUID | MS_NODEV
_MNT_DETACH = 2
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1
_BPF_INSTRUCTION_BYTES = 8
_MOST_DESCRIPTORS = 1 << 16

ARCHITECTURE = os.uname().machine
_LANDLOCK = {"landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446}
_COMMON = {"close_range": 436, "mount_setattr": 442, **_LANDLOCK}
NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {"capget": 125, "capset": 126, "pivot_root": 155, "seccomp": 317, **_COMMON},
    "aarch64": {"capget": 90, "capset": 91, "pivot_root": 41, "seccomp": 277, **_COMMON},
}
"""System calls that libc need not wrap, by processor."""

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """A system call by name, through libc's `syscall`; OSError, also ENOSYS on a processor that is not known."""
    number = NUMBERS.get(ARCHITECTURE, {}).get(name, -1)
    return check(name, _libc.syscall(ctypes.c_long(number), *arguments))


def check(name: str, result: int) -> int:
    """The result of the call `name`, or OSError with its errno."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` for new ones."""
    check("unshare", _libc.unshare(ctypes.c_int(flags)))


def leave_host(without: Container[str]) -> None:
    """Take mounts, names, IPC and network of our own; `without` names those that stay the host's."""
    unshare(CLONE_NEWNS | CLONE_NEWUTS)
    unshare(0 if "IPC namespace" in without else CLONE_NEWIPC)
    unshare(0 if "network namespace" in without else CLONE_NEWNET)


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """Mount or bind `source` on `target`."""
    arguments = [text.encode() or None for text in (source, target, kind)]
    result = _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None)
    check(f"mount {target}", result)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace")]


def set_mount_readonly(path: str, *, recursive: bool, proc: str = "/proc") -> None:
    """Make a mount, and with `recursive` those below it, read-only, without devices or set-user-id programs.

    `proc` is where the process table is mounted: kernels before 5.12 need it to find the mounts below.
    """
    attributes = _MountAttributes(_READONLY, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    try:
        call("mount_setattr", _AT_FDCWD, path.encode(), flags, ctypes.byref(attributes), size)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        for point in (path, *(_mounts_below(path, f"{proc}/self/mountinfo") if recursive else ())):
            # A user namespace may not take away what the host has set.
            kept = os.statvfs(point).f_flag & MS_NOEXEC
            mount("none", point, "", MS_REMOUNT | MS_BIND | _READONLY | kept, "")


def _mounts_below(path: str, table: str) -> list[str]:
    folder = path.rstrip("/") + "/"
    with open(table, "rb") as file:
        points = [line.split()[4] for line in file]
    # Not by a codec: the library may be out of reach while the root is being built. The backslash comes last.
    for escape, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        points = [point.replace(escape, byte) for point in points]
    return [name for point in points if (name := os.fsdecode(point)).startswith(folder) and name != folder]


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root and put the old root at `old`."""
    call("pivot_root", new.encode(), old.encode())


def umount_detach(path: str) -> None:
    """Take a mount away, at once from sight and later from use."""
    check("umount2", _libc.umount2(path.encode(), _MNT_DETACH))


def set_no_new_privileges() -> None:
    """Let no program that this process executes gain rights."""
    _control("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)


def set_subreaper() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _control("child_subreaper", _PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    _control("PR_SET_PDEATHSIG", 1, signal.SIGKILL)


def set_dumpable(is_dumpable: bool) -> None:
    """Whether processes of the same user may trace this one and read its memory."""
    _control("dumpable", _PR_SET_DUMPABLE, int(is_dumpable))


def keep_capabilities() -> None:
    """Let permitted capabilities outlast the next change of user."""
    _control("keepcaps", _PR_SET_KEEPCAPS, 1)


def has_capability(capability: int) -> bool:
    """Whether this process may use it."""
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    call("capget", header, sets)
    return bool(sets[1] & 1 << capability)


@contextlib.contextmanager
def eyes_of(uid: int) -> Iterator[None]:
    """Open files as user `uid` would; what this process may do to others, and they to it, stays.

    Root of a container may see no more of another user's processes than any other user does.
    """
    os.setegid(uid)
    os.seteuid(uid)
    try:
        # To look at a process takes every capability that it has.
        header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
        call("capget", header, sets)
        sets[0], sets[3] = sets[1], sets[4]
        call("capset", header, sets)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def drop_bounding_set(*, keep: int | None = None) -> None:
    """Let no program executed from here on gain a capability, but for the one to `keep`."""
    for capability in set(range(64)) - {keep}:
        # Past the last capability (EINVAL), or without the right to change the set (EPERM): nothing to drop.
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break


def drop_capabilities(*, keep: int | None = None) -> None:
    """Give up every capability for good, but for the one to `keep`, which programs that are executed get, too."""
    _libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    bits = 0 if keep is None else 1 << keep
    call("capset", header, (ctypes.c_uint32 * 6)(bits, bits, bits))
    if keep is not None:
        raise_it, zero = ctypes.c_ulong(_PR_CAP_AMBIENT_RAISE), ctypes.c_ulong(0)
        check("prctl cap_ambient", _libc.prctl(_PR_CAP_AMBIENT, raise_it, ctypes.c_ulong(keep), zero, zero))


def _control(name: str, option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    check(f"prctl {name}", _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def close_descriptors_from(first: int) -> None:
    """Close every descriptor from `first` on, those above a limit that was lowered since included."""
    try:
        call("close_range", ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), ctypes.c_uint(0))
    except OSError:
        try:
            last = max(map(int, os.listdir("/proc/self/fd")))
        except OSError:
            last = _MOST_DESCRIPTORS
        os.closerange(first, last + 1)


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def install_filter(program: bytes) -> None:
    """Have every system call of this process and its children judged by a classic BPF program."""
    filter_program = _FilterProgram(len(program) // _BPF_INSTRUCTION_BYTES, program)
    call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(filter_program))
