"""The filter that every system call of a job passes: no network, no new namespaces, no tracing, no hidden memory.

A classic BPF program, built for x86-64 and aarch64. What is denied fails with EPERM, so that a program can say so.
"""

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf.sandbox import kernel
from rlhf.sandbox.syscalls import numbers

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_FIRST_UNKNOWN = 453
"""Calls that came after this table (Linux 6.7 and later), and x86-64's 32-bit twins: as if the kernel lacked them."""
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_DENY = _ERROR | errno.EPERM
_UNKNOWN = _ERROR | errno.ENOSYS
_ANY = 0xFFFFFFFF

_ALWAYS: dict[str, str] = {
    "network": "socket",
    "trace": "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd move_pages migrate_pages process_madvise "
    "process_mrelease",
    # A job that puts itself last, or those who watch it, looks starved.
    "scheduling": "sched_setaffinity sched_setattr sched_setparam sched_setscheduler setpriority ioprio_set",
    "mounts": "mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr "
    "open_by_handle_at name_to_handle_at",
    "namespaces": "unshare setns",
    "kernel": "bpf perf_event_open userfaultfd keyctl add_key request_key io_uring_setup io_uring_enter "
    "io_uring_register init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct "
    "quotactl quotactl_fd syslog settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname iopl "
    "ioperm fanotify_init io_setup modify_ldt",
    # Its pages are in no process's memory and in no folder, so no watcher would see them; nor would one see a file
    # without a name whose descriptor is on its way through a socket.
    "hidden memory": "memfd_create memfd_secret shmget shmat shmctl shmdt semget semop semctl msgget msgsnd msgrcv "
    "msgctl mq_open mq_unlink mq_notify vmsplice sendmsg sendmmsg",
}
"""Mechanism -> calls that no program of a job may make."""
_CHANGES = (
    "creat unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir link linkat symlink symlinkat mknod mknodat "
    "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat truncate ftruncate utime utimes futimesat utimensat "
    "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr fallocate"
)
_SIGNALS = "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo"
_OWNING = "chown fchown lchown fchownat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the filter of one job is to hold."""

    files: Literal["full", "read-only"] = "full"
    """`read-only`: nothing can be opened for writing, made, renamed or removed anywhere."""
    may_fork: bool = True
    """Whether it may start processes; threads it may start always."""
    own_pid: int | None = None
    """Signals only to this process; none: the tier keeps signals inside."""
    shares_user: bool = False
    """The host's files have the job's user: it may not change their owners, take rights away or give them to all."""
    without: frozenset[str] = frozenset()
    """Mechanisms left out: keys of the tables here."""


@dataclass(frozen=True, slots=True)
class _Test:
    """Deny when argument `index`, masked, equals `value` (or does not, if `negated`)."""

    index: int
    value: int
    mask: int = _ANY
    negated: bool = False


_AF_UNIX = 1
_MAP_SHARED_ANONYMOUS, _MAP_HUGETLB = 0x21, 0x40000
_SO_SNDBUF, _SO_SNDBUFFORCE, _F_SETPIPE_SZ = 7, 32, 1031
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = 8, 10, 15, 0x8901, 0x8902
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # WRONLY RDWR CREAT TRUNC APPEND TMPFILE
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

_SOMETIMES: dict[str, dict[str, list[_Test]]] = {
    "network": {"socketpair": [_Test(0, _AF_UNIX, negated=True)]},
    "namespaces": {"clone": [_Test(0, 0, mask=_CLONE_NAMESPACES, negated=True)]},
    "scheduling": {"prlimit64": [_Test(0, 0, negated=True)]},
    "hidden memory": {
        "mmap": [
            _Test(3, _MAP_SHARED_ANONYMOUS, mask=_MAP_SHARED_ANONYMOUS),
            _Test(3, 0, mask=_MAP_HUGETLB, negated=True),
        ],
        "setsockopt": [_Test(2, _SO_SNDBUF), _Test(2, _SO_SNDBUFFORCE)],
        "fcntl": [_Test(1, _F_SETPIPE_SZ)],
    },
    "terminal": {"ioctl": [_Test(1, _TIOCSTI), _Test(1, _TIOCLINUX)]},
    "trace": {"prctl": [_Test(0, _PR_SET_DUMPABLE), _Test(0, _PR_SET_CHILD_SUBREAPER)]},
    "kernel": {"personality": [_Test(0, 0, mask=0x00FFFFFF, negated=True)]},
}
"""Mechanism -> calls that are denied for some arguments."""
_NO_WRITING = {
    "open": [_Test(1, 0, mask=_WRITING, negated=True)],
    "openat": [_Test(2, 0, mask=_WRITING, negated=True)],
}
_NO_FORKS = {"clone": [_Test(0, 0, mask=_CLONE_THREAD)]}
_NO_SENDERS = {
    "fcntl": [_Test(1, _F_SETOWN), _Test(1, _F_SETSIG), _Test(1, _F_SETOWN_EX)],
    "ioctl": [_Test(1, _FIOSETOWN), _Test(1, _SIOCSPGRP)],
}


def _harmless_mode(index: int) -> list[_Test]:
    return [_Test(index, 0o600, mask=0o600, negated=True), _Test(index, 0, mask=0o7022, negated=True)]


_NO_MODES = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}


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
    for name in _denied(rules):
        if name in known:
            program += _on(known[name], [_instruction(_RETURN, _DENY)])
    # libc then falls back to calls whose flags can be read from here: these take them from memory.
    hidden = [
        *_if(rules, "clone", ["clone3"]),
        *_if(rules, "files", ["openat2"] if rules.files == "read-only" else []),
    ]
    for name in hidden:
        program += _on(known[name], [_instruction(_RETURN, _UNKNOWN)])
    for name, tests in _conditional(rules).items():
        if name in known:
            program += _on(known[name], [line for test in tests for line in _deny_if(test)] + [_allow()])
    return b"".join([*program, _allow()])


def _if(rules: Rules, mechanism: str, names: Sequence[str]) -> Sequence[str]:
    return () if mechanism in rules.without else names


def _denied(rules: Rules) -> list[str]:
    names = [name for mechanism, calls in _ALWAYS.items() for name in _if(rules, mechanism, calls.split())]
    if rules.files == "read-only":
        names += _if(rules, "files", _CHANGES.split())
    if not rules.may_fork:
        names += _if(rules, "fork", ["fork", "vfork"])
    if rules.own_pid is not None:
        names += _if(rules, "signals", ["pidfd_send_signal"])
    if rules.shares_user:
        names += _if(rules, "modes", _OWNING.split())
    return names


def _conditional(rules: Rules) -> dict[str, list[_Test]]:
    """Calls that are denied for some arguments only."""
    groups = [*_SOMETIMES.items()]
    if rules.files == "read-only":
        groups.append(("files", _NO_WRITING))
    if not rules.may_fork:
        groups.append(("fork", _NO_FORKS))
    if rules.own_pid is not None:
        only_own = [_Test(0, rules.own_pid, negated=True)]
        groups.append(("signals", _NO_SENDERS | dict.fromkeys(_SIGNALS.split(), only_own)))
    if rules.shares_user:
        groups.append(("modes", {name: _harmless_mode(index) for name, index in _NO_MODES.items()}))
    tests: dict[str, list[_Test]] = {}
    for mechanism, calls in groups:
        for name in _if(rules, mechanism, list(calls)):
            tests.setdefault(name, []).extend(calls[name])
    return tests


def _on(number: int, block: list[bytes]) -> list[bytes]:
    """Run the block, which returns, when the call is `number`."""
    return [_instruction(_JUMP_EQUAL, number, 0, len(block)), *block]


def _deny_if(test: _Test) -> list[bytes]:
    lines = [_instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * test.index)]
    if test.mask != _ANY:
        lines.append(_instruction(_AND, test.mask))
    to_deny, past = (1, 0) if test.negated else (0, 1)
    return [*lines, _instruction(_JUMP_EQUAL, test.value, to_deny, past), _instruction(_RETURN, _DENY)]


def _allow() -> bytes:
    return _instruction(_RETURN, _ALLOW)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
