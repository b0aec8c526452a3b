"""The filter that every system call of a job passes: no network, no new namespaces, no tracing, no hidden memory.

A classic BPF program, built for x86-64 and aarch64. What is denied fails with EPERM, so that a program can say so.
"""

import errno
import struct
from dataclasses import dataclass
from typing import Literal

from rlhf.sandbox import kernel
from rlhf.sandbox.syscalls import numbers

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_FIRST_UNKNOWN = 470
"""Calls younger than this table (Linux 6.17 and later), and x86-64's 32-bit twins: as if the kernel lacked them."""
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_DENY = _ERROR | errno.EPERM
_UNKNOWN = _ERROR | errno.ENOSYS
_DONE = _ERROR | 0
"""Success, without the call."""

_AF_UNIX, _SOCK_STREAM, _SOCKET_TYPES = 1, 1, 0xF
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # WRONLY RDWR CREAT TRUNC APPEND TMPFILE
_ACCESS_MODE, _O_TRUNC = 0o3, 0o1000
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_FS_IOC_SETFLAGS, _FS_IOC_FSSETXATTR, _FS_IOC_ENABLE_VERITY = 0x40086602, 0x401C5820, 0x40806685
_FIOSETOWN, _SIOCSPGRP = 0x8901, 0x8902
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETPIPE_SZ = 8, 10, 15, 1031
_MAP_SHARED_ANONYMOUS, _MAP_HUGETLB = 0x21, 0x40000
_SO_SNDBUF, _SO_SNDBUFFORCE = 7, 32
_MODE_BITS, _PRIVATE_FILE, _PRIVATE_PROGRAM = 0o7777, 0o600, 0o700
_SEES_TRUNCATION = 3
"""The first ABI of Landlock that does."""
_ANY = 0xFFFFFFFF

_ALWAYS: dict[str, str] = {
    "network": "socket bind connect",
    "trace": "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise process_mrelease "
    "migrate_pages move_pages",
    "mounts": "mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr "
    "mount_setattr open_by_handle_at name_to_handle_at",
    "namespaces": "unshare setns",
    "kernel": "bpf perf_event_open userfaultfd keyctl add_key request_key io_uring_setup io_uring_enter "
    "io_uring_register init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct "
    "quotactl quotactl_fd syslog settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname iopl "
    "ioperm fanotify_init io_setup modify_ldt",
    # Who puts its own processes, or those that watch it, last, looks as if the machine were overloaded.
    "other processes": "ioprio_set sched_setaffinity sched_setattr sched_setparam sched_setscheduler",
    # Its pages are in no process's memory and in no folder, so no watcher would see them; nor a file without a name
    # whose descriptor is on its way through a socket.
    "hidden memory": "memfd_create memfd_secret shmget shmat shmctl shmdt semget semop semtimedop semctl msgget "
    "msgsnd msgrcv msgctl mq_open mq_unlink mq_notify vmsplice sendmsg sendmmsg",
}
"""Mechanism -> calls that no program of a job may make."""
_ATTRIBUTES = (
    "chown fchown lchown fchownat setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr "
    "removexattrat file_setattr"
)
_TIMES = "utime utimes futimesat"
_CHANGES = (
    "creat unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir link linkat symlink symlinkat mknod mknodat "
    f"truncate ftruncate fallocate chmod fchmod fchmodat fchmodat2 utimensat {_TIMES} {_ATTRIBUTES}"
)
_MODE_ARGUMENT = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}
_SIGNALS = "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the filter of one job is to hold."""

    files: Literal["full", "read-only"] = "full"
    """`read-only`: nothing can be opened for writing, made, renamed or removed anywhere."""
    may_fork: bool = True
    """Whether it may start processes; threads it may start always."""
    own_pid: int | None = None
    """Signals only to this process; none: the tier keeps signals inside."""
    landlock_abi: int | None = None
    """Of the Landlock that holds files; what it does not see is then held here."""
    shares_user: bool = False
    """Whether its user has files and processes outside, of which Landlock does not see every change: owners and
    attributes of files cannot be set, and modes to 0700 only. What many programs do on the way is answered as done:
    mode 0600, which new files have, times of files by name, and leaving the process group, which ends in one call."""
    without: frozenset[str] = frozenset()
    """Mechanisms left out: keys of the tables here, or `clone`, `files`, `fork`, `group`, `signals`."""


@dataclass(frozen=True, slots=True)
class _Test:
    """Deny when the low word of argument `index`, masked, equals `value` (or does not, if `negated`)."""

    index: int
    value: int
    mask: int = _ANY
    negated: bool = False


_Row = tuple[str, str, tuple[_Test, ...]]
_MUST_BE_SELF = _Test(0, 0, negated=True)
_FOR_SOME: tuple[_Row, ...] = (
    ("namespaces", "clone", (_Test(0, 0, mask=_CLONE_NAMESPACES, negated=True),)),
    ("kernel", "prctl", (_Test(0, _PR_SET_DUMPABLE), _Test(0, _PR_SET_CHILD_SUBREAPER))),
    ("kernel", "personality", (_Test(0, 0, mask=0x00FFFFFF, negated=True),)),
    ("kernel", "ioctl", (_Test(1, _TIOCSTI), _Test(1, _TIOCLINUX))),
    (
        "files",
        "ioctl",
        (_Test(1, _FS_IOC_SETFLAGS), _Test(1, _FS_IOC_FSSETXATTR), _Test(1, _FS_IOC_ENABLE_VERITY)),
    ),
    # A datagram socket, also one of a pair, can send to any name.
    (
        "network",
        "socketpair",
        (_Test(0, _AF_UNIX, negated=True), _Test(1, _SOCK_STREAM, mask=_SOCKET_TYPES, negated=True)),
    ),
    # The kernel signals the owner of a descriptor when it becomes ready, with any signal asked for.
    ("signals", "fcntl", (_Test(1, _F_SETOWN), _Test(1, _F_SETSIG), _Test(1, _F_SETOWN_EX))),
    ("signals", "ioctl", (_Test(1, _FIOSETOWN), _Test(1, _SIOCSPGRP))),
    ("other processes", "prlimit64", (_MUST_BE_SELF,)),
    ("other processes", "setpriority", (_MUST_BE_SELF, _Test(1, 0, negated=True))),
    # What is mapped so stays whole as long as one page of it is mapped, and only that page is seen.
    (
        "hidden memory",
        "mmap",
        (
            _Test(3, _MAP_SHARED_ANONYMOUS, mask=_MAP_SHARED_ANONYMOUS),
            _Test(3, 0, mask=_MAP_HUGETLB, negated=True),
        ),
    ),
    # The watcher counts pipes and sockets as full ones of the usual size.
    ("hidden memory", "fcntl", (_Test(1, _F_SETPIPE_SZ),)),
    ("hidden memory", "setsockopt", (_Test(2, _SO_SNDBUF), _Test(2, _SO_SNDBUFFORCE))),
)
"""(mechanism, call, the arguments for which it is denied), in every tier."""


def build_filter(rules: Rules, *, architecture: str = kernel.ARCHITECTURE) -> bytes:
    """The BPF program. KeyError on a processor other than x86-64 and aarch64."""
    known = numbers(architecture)
    program = [
        _instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _instruction(_JUMP_EQUAL, _AUDIT_ARCHITECTURES[architecture], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_OFFSET),
        _instruction(_JUMP_GREATER_EQUAL, _FIRST_UNKNOWN, 0, 1),
        _instruction(_RETURN, _UNKNOWN),
    ]
    blocks = {name: [_instruction(_RETURN, _DENY)] for name in _denied(rules)}
    blocks |= {name: [_instruction(_RETURN, _UNKNOWN)] for name in _hidden(rules)}
    for name, tests in _conditional(rules).items():
        blocks.setdefault(name, [*(line for test in tests for line in _deny_if(test)), _allow()])
    if rules.shares_user:
        blocks = _for_shared_user(rules) | blocks
    for name, block in blocks.items():
        if name in known:
            program += _on(known[name], block)
    return b"".join([*program, _allow()])


def _holds(rules: Rules, mechanism: str) -> bool:
    return mechanism not in rules.without


def _denied(rules: Rules) -> list[str]:
    names = [
        name for mechanism, calls in _ALWAYS.items() if _holds(rules, mechanism) for name in calls.split()
    ]
    if _holds(rules, "files"):
        names += _denied_files(rules)
    if not rules.may_fork and _holds(rules, "fork"):
        names += ["fork", "vfork"]
    if rules.own_pid is not None and _holds(rules, "signals"):
        names += ["pidfd_send_signal"]
    return names


def _denied_files(rules: Rules) -> list[str]:
    names = _CHANGES.split() if rules.files == "read-only" else []
    if rules.shares_user:
        names += _ATTRIBUTES.split()
    if rules.landlock_abi is not None:
        # It would tell the names of files in folders that cannot be read.
        names += ["inotify_add_watch"]
    if _lacks_truncation(rules):
        names += ["truncate"]
    return names


def _lacks_truncation(rules: Rules) -> bool:
    return rules.landlock_abi is not None and rules.landlock_abi < _SEES_TRUNCATION


def _hidden(rules: Rules) -> list[str]:
    """Calls that take flags from memory: libc then falls back to those whose flags can be read from here."""
    names = ["clone3"] if _holds(rules, "clone") else []
    if _holds(rules, "files") and (rules.files == "read-only" or _lacks_truncation(rules)):
        names += ["openat2"]
    return names


def _conditional(rules: Rules) -> dict[str, list[_Test]]:
    """Calls that are denied for some arguments only."""
    rows = [*_FOR_SOME, *_for_some_files(rules)]
    if not rules.may_fork:
        rows.append(("fork", "clone", (_Test(0, 0, mask=_CLONE_THREAD),)))
    if rules.own_pid is not None:
        only_own = (_Test(0, rules.own_pid, negated=True),)
        rows += [("signals", name, only_own) for name in _SIGNALS.split()]
    found: dict[str, list[_Test]] = {}
    for mechanism, name, tests in rows:
        if _holds(rules, mechanism):
            found.setdefault(name, []).extend(tests)
    return found


def _for_some_files(rules: Rules) -> list[_Row]:
    rows: list[_Row] = []
    for name, flags in (("open", 1), ("openat", 2)):
        if rules.files == "read-only":
            rows.append(("files", name, (_Test(flags, 0, mask=_WRITING, negated=True),)))
        elif _lacks_truncation(rules):
            rows.append(("files", name, (_Test(flags, _O_TRUNC, mask=_ACCESS_MODE | _O_TRUNC),)))
    return rows


def _for_shared_user(rules: Rules) -> dict[str, list[bytes]]:
    done = [_instruction(_RETURN, _DONE)]
    blocks = dict.fromkeys(("setsid", "setpgid") if _holds(rules, "group") else (), done)
    if _holds(rules, "files"):
        blocks |= dict.fromkeys(_TIMES.split(), done) | {"utimensat": _descriptors_only(1)}
        blocks |= {name: _private_modes_only(index) for name, index in _MODE_ARGUMENT.items()}
    return blocks


def _on(number: int, block: list[bytes]) -> list[bytes]:
    """Run the block, which returns, when the call is `number`."""
    return [_instruction(_JUMP_EQUAL, number, 0, len(block)), *block]


def _deny_if(test: _Test) -> list[bytes]:
    lines = [_instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * test.index)]
    if test.mask != _ANY:
        lines.append(_instruction(_AND, test.mask))
    to_deny, past = (1, 0) if test.negated else (0, 1)
    return [*lines, _instruction(_JUMP_EQUAL, test.value, to_deny, past), _instruction(_RETURN, _DENY)]


def _descriptors_only(index: int) -> list[bytes]:
    """Allowed when pointer argument `index` is null: then no path is named."""
    offset = _ARGUMENTS_OFFSET + 8 * index
    return [
        _instruction(_LOAD, offset),
        _instruction(_JUMP_EQUAL, 0, 0, 3),
        _instruction(_LOAD, offset + 4),
        _instruction(_JUMP_EQUAL, 0, 0, 1),
        _allow(),
        _instruction(_RETURN, _DONE),
    ]


def _private_modes_only(index: int) -> list[bytes]:
    return [
        _instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * index),
        _instruction(_AND, _MODE_BITS),
        _instruction(_JUMP_EQUAL, _PRIVATE_PROGRAM, 0, 1),
        _allow(),
        _instruction(_JUMP_EQUAL, _PRIVATE_FILE, 0, 1),
        _instruction(_RETURN, _DONE),
        _instruction(_RETURN, _DENY),
    ]


def _allow() -> bytes:
    return _instruction(_RETURN, _ALLOW)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
