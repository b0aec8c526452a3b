"""What the filter of both processors denies, allows and hides: run in a BPF machine, no call is made."""

import errno
import re
from pathlib import Path
from random import Random

import pytest

from rlhf.sandbox import kernel
from rlhf.sandbox.seccomp import Rules, build_filter
from rlhf.sandbox.syscalls import numbers
from tests.unit.sandbox.bpf import ALLOW, ARCHITECTURES, ERROR, KILL, Call, judge

EPERM, ENOSYS, DONE = ERROR | errno.EPERM, ERROR | errno.ENOSYS, ERROR
PID = 4711
# The narrowest of every kind, as the tiers ask for them.
NAMESPACES = Rules()
LANDLOCK = Rules(landlock_abi=6)
OLD_LANDLOCK = Rules(landlock_abi=2, own_pid=PID, shares_user=True)
READ_ONLY = Rules(files="read-only", may_fork=False, own_pid=PID)
EVERY_KIND = {"namespaces": NAMESPACES, "landlock": LANDLOCK, "old": OLD_LANDLOCK, "read-only": READ_ONLY}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}

# Spelled out here, not read from the module: what a sandbox of this kind must deny.
GROUPS = {
    "network": "socket bind connect",
    "trace": "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise process_mrelease "
    "migrate_pages move_pages",
    "mounts": "mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr "
    "mount_setattr name_to_handle_at open_by_handle_at",
    "namespaces": "unshare setns",
    "kernel": "bpf perf_event_open userfaultfd keyctl add_key request_key io_uring_setup io_uring_enter "
    "io_uring_register init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff "
    "acct quotactl quotactl_fd syslog settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname "
    "iopl ioperm fanotify_init io_setup modify_ldt",
    "hidden memory": "memfd_create memfd_secret shmget shmat shmctl shmdt semget semop semtimedop semctl msgget "
    "msgsnd msgrcv msgctl mq_open mq_unlink mq_notify vmsplice sendmsg sendmmsg",
    "other processes": "ioprio_set sched_setaffinity sched_setscheduler sched_setparam sched_setattr",
}
ATTRIBUTES = (
    "chown fchown lchown fchownat setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr "
    "removexattrat file_setattr"
)
TIMES = "utime utimes futimesat"
CHANGES = (
    "creat unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir link linkat symlink symlinkat mknod mknodat "
    f"truncate ftruncate fallocate chmod fchmod fchmodat fchmodat2 utimensat {TIMES} {ATTRIBUTES}"
)
SIGNALS = "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo"
X86_ONLY = (
    "creat unlink rename mkdir rmdir link symlink mknod chmod chown lchown utime utimes futimesat open fork vfork "
    "iopl ioperm modify_ldt"
)
HARMLESS = {
    "x86_64": (
        0,
        1,
        3,
        5,
        10,
        11,
        12,
        13,
        14,
        22,
        32,
        39,
        59,
        60,
        61,
        63,
        96,
        202,
        217,
        228,
        231,
        318,
        332,
    ),
    "aarch64": (57, 59, 61, 63, 64, 93, 94, 95, 98, 160, 169, 172, 214, 215, 221, 226, 260, 278, 291),
}
"""read, write, mmap, execve, exit, wait, futex and their like."""

both = pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
each_kind = pytest.mark.parametrize("kind", EVERY_KIND)


def verdict(rules: Rules, architecture: str, call: str | int, *arguments: int) -> int:
    number = call if isinstance(call, int) else numbers(architecture)[call]
    return judge(
        build_filter(rules, architecture=architecture),
        Call(ARCHITECTURES[architecture], number, arguments),
    )


def present(names: str, architecture: str) -> list[str]:
    return [name for name in names.split() if architecture == "x86_64" or name not in X86_ONLY.split()]


@both
@each_kind
@pytest.mark.parametrize("group", GROUPS)
def test_group_is_denied_in_every_tier_and_only_it_is_left_out(architecture, kind, group):
    rules = EVERY_KIND[kind]
    without = Rules(
        **{
            name: getattr(rules, name)
            for name in ("files", "may_fork", "own_pid", "landlock_abi", "shares_user")
        },
        without=frozenset({group}),
    )
    for name in present(GROUPS[group], architecture):
        assert verdict(rules, architecture, name) == EPERM, name
        assert verdict(without, architecture, name) == ALLOW, name
    for other, names in GROUPS.items():
        if other != group:
            assert {verdict(without, architecture, name) for name in present(names, architecture)} == {EPERM}


@both
@each_kind
def test_program_of_another_processor_is_killed(architecture, kind):
    program = build_filter(EVERY_KIND[kind], architecture=architecture)
    for foreign in (*(ARCHITECTURES[a] for a in ARCHITECTURES if a != architecture), 0x40000003, 0):
        assert judge(program, Call(foreign, 1)) == KILL


@each_kind
def test_x32_numbers_do_not_exist(kind):
    rules = EVERY_KIND[kind]
    for number in (0, 41, 59, 520, 545):
        assert verdict(rules, "x86_64", 0x40000000 + number) == ENOSYS
    assert verdict(rules, "x86_64", -1) == ENOSYS


@both
@each_kind
def test_clone_with_flags_in_memory_does_not_exist(architecture, kind):
    assert verdict(EVERY_KIND[kind], architecture, "clone3") == ENOSYS


@both
@each_kind
@pytest.mark.parametrize(
    "flag", [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]
)
def test_clone_makes_no_namespace(architecture, kind, flag):
    thread = 0x00010000
    for flags in (flag, flag | 17, flag | thread, flag | 1 << 40):
        assert verdict(EVERY_KIND[kind], architecture, "clone", flags) == EPERM


@both
def test_clone_makes_threads_everywhere_and_processes_where_they_are_allowed(architecture):
    thread, process = 0x003D0F00, 17
    for rules in EVERY_KIND.values():
        assert verdict(rules, architecture, "clone", thread) == ALLOW
        assert verdict(rules, architecture, "clone", process) == (ALLOW if rules.may_fork else EPERM)
    for name in present("fork vfork", architecture):
        assert verdict(NAMESPACES, architecture, name) == ALLOW
        assert verdict(READ_ONLY, architecture, name) == EPERM


@both
@each_kind
def test_socket_pairs_are_local_streams_only(architecture, kind):
    unix, stream, cloexec = 1, 1, 0o2000000
    rules = EVERY_KIND[kind]
    assert verdict(rules, architecture, "socketpair", unix, stream | cloexec) == ALLOW
    for family in (0, 2, 10, 16, 17, 38, 40):
        assert verdict(rules, architecture, "socketpair", family, stream) == EPERM
    for datagram in (2, 3):
        assert verdict(rules, architecture, "socketpair", unix, datagram | cloexec) == EPERM


@both
@each_kind
def test_memory_that_no_process_shows_cannot_be_had(architecture, kind):
    shared, validated, private, anonymous, fixed, buffer, option = 1, 3, 2, 0x20, 0x10, 7, 9
    rules = EVERY_KIND[kind]
    for flags in (shared | anonymous, shared | anonymous | fixed, shared | anonymous | 0x8000 | 1 << 32):
        assert verdict(rules, architecture, "mmap", 0, 4096, 3, flags, -1) == EPERM
    for flags in (private | anonymous, shared, private, validated, private | anonymous | fixed):
        assert verdict(rules, architecture, "mmap", 0, 4096, 3, flags, -1) == ALLOW
    assert verdict(rules, architecture, "setsockopt", 5, 1, buffer) == EPERM
    assert verdict(rules, architecture, "setsockopt", 5, 1, option) == ALLOW


@both
def test_read_only_opens_nothing_for_writing(architecture):
    calls = [("openat", (0, 0))] + ([("open", (0,))] if architecture == "x86_64" else [])
    for name, before in calls:
        for flags in (0, 0o2000000, 0o200000, 0o10000000):
            assert verdict(READ_ONLY, architecture, name, *before, flags) == ALLOW
        for flags in (0o1, 0o2, 0o100, 0o1000, 0o2000, 0o20200000, 0o1 | 0o2000000):
            assert verdict(READ_ONLY, architecture, name, *before, flags) == EPERM
            assert verdict(NAMESPACES, architecture, name, *before, flags) == ALLOW
    assert verdict(READ_ONLY, architecture, "openat2") == ENOSYS
    assert verdict(NAMESPACES, architecture, "openat2") == ALLOW


@both
def test_read_only_changes_nothing(architecture):
    for name in present(CHANGES, architecture):
        assert verdict(READ_ONLY, architecture, name) == EPERM, name
        assert verdict(NAMESPACES, architecture, name) == ALLOW, name


@both
@pytest.mark.parametrize("abi", [1, 2, 3, 6])
def test_truncation_that_landlock_does_not_see_is_denied(architecture, abi):
    rules = Rules(landlock_abi=abi)
    expected = EPERM if abi < 3 else ALLOW
    truncate, for_writing = 0o1000, 0o1
    assert verdict(rules, architecture, "truncate") == expected
    assert verdict(rules, architecture, "openat", 0, 0, truncate) == expected
    assert verdict(rules, architecture, "openat2") == (ENOSYS if abi < 3 else ALLOW)
    for harmless in (0, for_writing, for_writing | truncate, 0o2 | truncate):
        assert verdict(rules, architecture, "openat", 0, 0, harmless) == ALLOW


@both
def test_files_of_the_same_user_keep_owner_times_and_attributes(architecture):
    for name in present(ATTRIBUTES, architecture):
        assert verdict(OLD_LANDLOCK, architecture, name) == EPERM, name
    for name in present(TIMES, architecture):
        assert verdict(OLD_LANDLOCK, architecture, name) == DONE
        assert verdict(LANDLOCK, architecture, name) == ALLOW
    for path in (0x1000, 1 << 32, (1 << 32) + 1):
        assert verdict(OLD_LANDLOCK, architecture, "utimensat", 0, path) == DONE
    assert verdict(OLD_LANDLOCK, architecture, "utimensat", 5, 0) == ALLOW
    assert verdict(LANDLOCK, architecture, "utimensat", 0, 0x1000) == ALLOW


@both
def test_files_of_the_same_user_become_private_at_most(architecture):
    calls = {"fchmod": 1, "fchmodat": 2, "fchmodat2": 2} | ({"chmod": 1} if architecture == "x86_64" else {})
    for name, index in calls.items():
        before = [7] * index
        assert verdict(OLD_LANDLOCK, architecture, name, *before, 0o700) == ALLOW
        assert verdict(OLD_LANDLOCK, architecture, name, *before, 0o100600) == DONE
        for mode in (0, 0o400, 0o644, 0o755, 0o777, 0o4700, 0o2700):
            assert verdict(OLD_LANDLOCK, architecture, name, *before, mode) == EPERM
        assert verdict(LANDLOCK, architecture, name, *before, 0o777) == ALLOW


@both
def test_processes_of_the_same_user_stay_in_their_group(architecture):
    for name in ("setsid", "setpgid"):
        assert verdict(OLD_LANDLOCK, architecture, name) == DONE
        assert {verdict(rules, architecture, name) for rules in (NAMESPACES, LANDLOCK, READ_ONLY)} == {ALLOW}


@both
def test_folders_outside_cannot_be_watched(architecture):
    assert verdict(LANDLOCK, architecture, "inotify_add_watch") == EPERM
    assert verdict(NAMESPACES, architecture, "inotify_add_watch") == ALLOW


@both
def test_signals_go_to_oneself_only(architecture):
    for name in SIGNALS.split():
        assert verdict(READ_ONLY, architecture, name, PID) == ALLOW
        for target in (1, PID + 1, -1, 0, -PID):
            assert verdict(READ_ONLY, architecture, name, target) == EPERM
            assert verdict(LANDLOCK, architecture, name, target) == ALLOW
    assert verdict(READ_ONLY, architecture, "pidfd_send_signal") == EPERM
    assert verdict(LANDLOCK, architecture, "pidfd_send_signal") == ALLOW


@both
@each_kind
def test_descriptors_signal_nobody(architecture, kind):
    rules = EVERY_KIND[kind]
    for command in (8, 10, 15):
        assert verdict(rules, architecture, "fcntl", 0, command) == EPERM
    for command in range(8):
        assert verdict(rules, architecture, "fcntl", 0, command) == ALLOW
    for request in (0x8901, 0x8902):
        assert verdict(rules, architecture, "ioctl", 0, request) == EPERM


@both
@each_kind
def test_limits_and_scheduling_of_others_are_out_of_reach(architecture, kind):
    rules = EVERY_KIND[kind]
    assert verdict(rules, architecture, "prlimit64", 0) == ALLOW
    assert {verdict(rules, architecture, "prlimit64", pid) for pid in (1, PID, -1)} == {EPERM}
    assert verdict(rules, architecture, "setpriority", 0, 0) == ALLOW
    for which, who in ((0, 1), (1, 0), (2, 0)):
        assert verdict(rules, architecture, "setpriority", which, who) == EPERM


@both
@each_kind
def test_a_few_requests_are_denied_whatever_the_tier(architecture, kind):
    rules = EVERY_KIND[kind]
    for request in (0x5412, 0x541C, 0x40086602, 0x401C5820, 0x40806685, 1 << 32 | 0x5412):
        assert verdict(rules, architecture, "ioctl", 0, request) == EPERM
    for request in (0x5401, 0x5413, 0x541B, 0x5451):
        assert verdict(rules, architecture, "ioctl", 0, request) == ALLOW
    dumpable, subreaper, name = 4, 36, 15
    assert {verdict(rules, architecture, "prctl", option) for option in (dumpable, subreaper)} == {EPERM}
    assert verdict(rules, architecture, "prctl", name) == ALLOW
    assert verdict(rules, architecture, "personality", 0) == ALLOW
    assert {verdict(rules, architecture, "personality", p) for p in (0x0040000, 0x0400000, 8)} == {EPERM}


@both
@each_kind
def test_ordinary_calls_are_allowed(architecture, kind):
    assert {verdict(EVERY_KIND[kind], architecture, n, 17) for n in HARMLESS[architecture]} == {ALLOW}


@both
@each_kind
def test_no_number_outside_the_table_is_denied(architecture, kind):
    program, random = build_filter(EVERY_KIND[kind], architecture=architecture), Random(0)
    judged = set(numbers(architecture).values())
    for number in range(470):
        drawn = [random.choice((0, 1, 2**31, 2**32 - 1, random.getrandbits(64))) for _ in range(6)]
        if number not in judged:
            assert judge(program, Call(ARCHITECTURES[architecture], number, drawn)) == ALLOW, number


@both
@each_kind
def test_calls_younger_than_the_table_do_not_exist(architecture, kind):
    assert {verdict(EVERY_KIND[kind], architecture, number) for number in range(470, 600)} == {ENOSYS}


@both
@each_kind
def test_memory_that_no_process_shows_is_denied(architecture, kind):
    rules = EVERY_KIND[kind]
    shared, private, anonymous, huge = 0x01, 0x02, 0x20, 0x40000
    for flags, expected in (
        (shared, ALLOW),
        (private, ALLOW),
        (private | anonymous, ALLOW),
        (shared | anonymous, EPERM),
        (0x03 | anonymous, EPERM),
        (private | anonymous | huge, EPERM),
    ):
        assert verdict(rules, architecture, "mmap", 0, 1 << 20, 3, flags) == expected, hex(flags)
    size_of_pipe, send_buffer, receive_buffer = 1031, 7, 8
    assert verdict(rules, architecture, "fcntl", 5, size_of_pipe, 1 << 20) == EPERM
    assert verdict(rules, architecture, "setsockopt", 5, 1, send_buffer) == EPERM
    assert verdict(rules, architecture, "setsockopt", 5, 1, receive_buffer) == ALLOW


@both
def test_no_number_stands_twice(architecture):
    known = numbers(architecture)
    assert len(set(known.values())) == len(known)
    assert known.keys() >= {n for names in (*GROUPS.values(), CHANGES) for n in present(names, architecture)}


@both
def test_numbers_are_those_of_the_headers(architecture):
    if not HEADERS[architecture].is_file():
        pytest.skip(f"the kernel's headers are not installed: {HEADERS[architecture]}")
    defined = re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)\s", HEADERS[architecture].read_text() + "\n")
    header = {name: int(number) for name, number in defined}
    ours = numbers(architecture) | kernel.NUMBERS[architecture]
    assert {name: header[name] for name in ours if name in header} == {
        n: ours[n] for n in ours if n in header
    }
    # Calls younger than the headers are the only ones they may lack.
    assert {name for name in ours if name not in header and ours[name] < 450} == set()
    every = {name for both in ("x86_64", "aarch64") for name in numbers(both)}
    assert {name for name in every - ours.keys() if name in header} == set()
