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
_X32_BIT = 0x40000000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_DENY = _ERROR | errno.EPERM
_UNKNOWN = _ERROR | errno.ENOSYS

_AF_UNIX = 1
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # WRONLY RDWR CREAT TRUNC APPEND TMPFILE
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_ANY = 0xFFFFFFFF

_ALWAYS: dict[str, str] = {
    "network": "socket",
    "trace": "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd",
    "mounts": "mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr "
    "open_by_handle_at name_to_handle_at",
    "namespaces": "unshare setns",
    "kernel": "bpf perf_event_open userfaultfd keyctl add_key request_key io_uring_setup io_uring_enter "
    "io_uring_register init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct "
    "quotactl quotactl_fd syslog settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname iopl "
    "ioperm fanotify_init",
    # Its pages are in no process's memory and in no folder, so no watcher would see them.
    "hidden memory": "memfd_create memfd_secret shmget shmat shmctl shmdt semget semop semctl msgget msgsnd msgrcv "
    "msgctl mq_open mq_unlink mq_notify",
}
"""Mechanism -> calls that no program of a job may make."""
_CHANGES = (
    "creat unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir link linkat symlink symlinkat mknod mknodat "
    "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat truncate ftruncate utime utimes futimesat utimensat "
    "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr fallocate"
)
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
    without: frozenset[str] = frozenset()
    """Mechanisms left out: keys of the tables above, or `files`, `fork`, `signals`."""


@dataclass(frozen=True, slots=True)
class _Test:
    """Deny when argument `index`, masked, equals `value` (or does not, if `negated`)."""

    index: int
    value: int
    mask: int = _ANY
    negated: bool = False


def build_filter(rules: Rules, *, architecture: str = kernel.ARCHITECTURE) -> bytes:
    """The BPF program. KeyError on a processor other than x86-64 and aarch64."""
    known = numbers(architecture)
    program = [
        _instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _instruction(_JUMP_EQUAL, _AUDIT_ARCHITECTURES[architecture], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_OFFSET),
    ]
    if architecture == "x86_64":
        program += [_instruction(_JUMP_GREATER_EQUAL, _X32_BIT, 0, 1), _instruction(_RETURN, _UNKNOWN)]
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
    return names


def _conditional(rules: Rules) -> dict[str, list[_Test]]:
    """Calls that are denied for some arguments only."""
    clone = [_Test(0, 0, mask=_CLONE_NAMESPACES, negated=True)] if "namespaces" not in rules.without else []
    if not rules.may_fork and "fork" not in rules.without:
        clone.append(_Test(0, 0, mask=_CLONE_THREAD))
    tests = {
        "clone": clone,
        "ioctl": [_Test(1, _TIOCSTI), _Test(1, _TIOCLINUX)],
        "prctl": [_Test(0, _PR_SET_DUMPABLE), _Test(0, _PR_SET_CHILD_SUBREAPER)],
        "personality": [_Test(0, 0, mask=0x00FFFFFF, negated=True)],
    }
    if "network" not in rules.without:
        tests["socketpair"] = [_Test(0, _AF_UNIX, negated=True)]
    if rules.files == "read-only" and "files" not in rules.without:
        tests["open"] = [_Test(1, 0, mask=_WRITING, negated=True)]
        tests["openat"] = [_Test(2, 0, mask=_WRITING, negated=True)]
    if rules.own_pid is not None and "signals" not in rules.without:
        tests |= {name: [_Test(0, rules.own_pid, negated=True)] for name in _SIGNALS.split()}
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
