"""Straight to the kernel: by numbers, by another processor's door, by files that are settings."""

from tests.unit.sandbox.attacks import LIBC, Attack

_NEVER = "what a program has no use for is no door either"


def _denied(why: str, *calls: tuple[int, int, str]) -> Attack:
    """None of these calls (number on x86-64, on aarch64, arguments) succeeds."""
    lines = "".join(
        f"if system({x86}, {arm}, {args}) >= 0: print('ESCAPED', {x86})\n" for x86, arm, args in calls
    )
    return Attack(why=why, code=LIBC + lines)


_FOREIGN = (
    LIBC
    + """
page = ctypes.create_string_buffer(1)
start = mapped(4096, 0x22, rights=7)
ctypes.memmove(start, CODE, len(CODE))
pid = os.fork() if x86 else 1
if pid == 0:
    ctypes.CFUNCTYPE(ctypes.c_long)(start)()
    os._exit(0)
if x86 and os.waitpid(pid, 0)[1] in (0, 0 << 8): print("ESCAPED")
"""
)

CALLS = {
    "calls of the 32-bit processor": Attack(
        why="its numbers are other calls: a filter that does not look sees getpid where socketcall is",
        # mov eax, 102 (socketcall); mov ebx, 1; int 0x80; ret
        code=_FOREIGN.replace("CODE", r'b"\xb8\x66\0\0\0\xbb\x01\0\0\0\xcd\x80\xc3"'),
        verdicts=frozenset({"exited"}),
        works_in=frozenset({"read-only"}),
    ),
    "calls of the future": _denied(
        "a call that nobody has judged",
        *((n, n, "0, 0, 0, 0, 0, 0") for n in (470, 471, 480, 500, 512, 547, 1000)),
    ),
    "the clock": _denied(
        "other programs live by it",
        (227, 112, "0, bytes(16)"),
        (164, 170, "bytes(16), 0"),
        (159, 171, "bytes(256)"),
        (305, 266, "0, bytes(256)"),
    ),
    "the machine's name": _denied(_NEVER, (170, 161, "b'x', 1"), (171, 162, "b'x', 1")),
    "a mount by the new calls": _denied(
        "there are two ways to mount",
        (430, 430, "b'tmpfs', 0"),
        (428, 428, "-100, b'/', 1"),
        (429, 429, "-1, b'', -1, b'', 4"),
        (442, 442, "-100, b'/', 0, bytes(32), 32"),
        (155, 41, "b'.', b'.'"),
        (467, 467, "-100, b'/', 1, bytes(32), 32"),
    ),
    "files by handles": _denied(
        "a handle needs no path",
        (303, 264, "-100, b'.', (ctypes.c_uint * 40)(128), ctypes.byref(ctypes.c_int()), 0"),
        (304, 265, "-100, bytes(32), 0"),
    ),
    "memory without a name": _denied(
        "it is in no folder and in no process's memory",
        (319, 279, "b'x', 0"),
        (447, 447, "0"),
        (29, 194, "0, 4096, 0o1600"),
        (240, 180, "b'x', 0o102, 0o600, 0"),
        (68, 186, "0, 0o1600"),
        (64, 190, "0, 1, 0o1600"),
    ),
    "keys": _denied(
        "rings of keys belong to users, not to processes",
        (250, 219, "0, -4, 1"),
        (248, 217, "b'user', b'x', b'x', 1, -2"),
        (249, 218, "b'user', b'x', 0, -2"),
    ),
    "programs in the kernel": _denied(
        _NEVER,
        (321, 280, "5, bytes(128), 128"),
        (298, 241, "bytes(128), 0, -1, -1, 0"),
        (323, 282, "1"),
        (425, 425, "8, bytes(120)"),
    ),
    "another personality": _denied(
        "it turns off what protects memory",
        (135, 92, "0x0040000"),
        (135, 92, "0x0400000"),
        (154, 1000, "1, bytes(16), 16"),
    ),
    "a trace of one's own": _denied(
        "a tracer sees what a filter has allowed",
        (101, 117, "0, 0, 0, 0"),
        (310, 270, "os.getpid(), 0, 0, 0, 0, 0"),
        (312, 272, "os.getpid(), os.getpid(), 0, 0, 0"),
    ),
    "a filter over the filter": Attack(
        why="whoever listens to a filter of its own could answer for the kernel",
        code=LIBC
        + """
class Program(ctypes.Structure): _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]
allow = (6).to_bytes(2, "little") + bytes(2) + (0x7fff0000).to_bytes(4, "little")
libc.prctl(22, 2, ctypes.byref(Program(1, allow)))
try: socket.socket()
except OSError: raise SystemExit
print("ESCAPED")""",
    ),
    "a limit on everybody's watches": _denied(
        _NEVER, (300, 262, "0, 0"), (179, 60, "0x800007 << 8, 0, 0, 0")
    ),
    "settings of the kernel, each": Attack(
        why="every one that could be written is written",
        code="""
import os
for top in ("/proc/sys", "/sys", "/proc/irq", "/proc/bus", "/proc/scsi", "/proc/driver"):
    for folder, _, names in os.walk(top):
        # It opens for all, but to write takes a right.
        for name in set(names) - {"ns_last_pid"}:
            try: os.close(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_NONBLOCK))
            except OSError: continue
            print("ESCAPED", folder, name)
for name in ("sysrq-trigger", "kmsg", "kcore", "self/uid_map", "self/gid_map", "self/setgroups", "self/loginuid"):
    try: open(f"/proc/{name}", "r+b", 0).write(b"0 0 1")
    except (OSError, ValueError): continue
    print("ESCAPED", name)""",
        limits={"cpu_s": 3.0},
        verdicts=frozenset({"exited", "wall_limit"}),
    ),
    "devices, each": Attack(
        why="a device is a door to its driver",
        code="""
import os, stat
allowed = {"null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr", "shm", "tty"}
for folder, _, names in os.walk("/dev"):
    for name in names:
        path = f"{folder}/{name}"
        for mode in (os.O_RDONLY, os.O_WRONLY):
            if name in allowed or name.isdigit(): continue
            try: os.open(path, mode | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError: continue
            print("ESCAPED", path)""",
        works_in=frozenset({"uid", "read-only"}),
    ),
    "rights of programs that have them": Attack(
        why="set-user-id programs and files with capabilities give theirs to whoever runs them",
        code="""
import os, subprocess
def rights():
    return [line for line in open("/proc/self/status") if line.startswith(("Uid", "CapEff", "CapPrm"))]
mine = rights()
for folder in ("/usr/bin", "/bin", "/usr/sbin", "/usr/lib/openssh"):
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if os.stat(f"{folder}/{name}").st_mode & 0o6000 and os.access(f"{folder}/{name}", os.X_OK):
            try: child = subprocess.Popen([f"{folder}/{name}"], stdin=-1, stdout=-3, stderr=-3)
            except OSError: continue
            try: theirs = [l for l in open(f"/proc/{child.pid}/status") if l.startswith(("Uid", "CapEff", "CapPrm"))]
            except OSError: theirs = mine
            if theirs and theirs != mine: print("ESCAPED", name, theirs, mine)
            child.kill()
            break""",
        verdicts=frozenset({"exited", "wall_limit"}),
    ),
    "a helper that the kernel runs": Attack(
        why="where core dumps go to a program, it runs outside, as root",
        code="""
import resource
if resource.getrlimit(resource.RLIMIT_CORE) != (1, 1): print("ESCAPED")""",
    ),
}
