"""Against those who watch: the init or monitor that is a program's parent, the launcher, the client; and what a program
inherits from the process it was forked from."""

from tests.unit.sandbox.attacks import LIBC, Attack

ENDED = frozenset({"exited", "signalled"})
CPU = frozenset({"cpu_limit"})
_BURN = "\nwhile True: pass\n"
_OTHERS = "\nothers = [os.getppid(), 1, LAUNCHER, CLIENT]\n"

WATCHERS = {
    "every signal to the parent": Attack(
        why="the init is of the job's user; Python gives SIGINT a handler, and a handler makes even an init mortal",
        code="""
import os, signal
others = [os.getppid(), 1, LAUNCHER, CLIENT]
for pid in others:
    for number in range(1, 65):
        if number != signal.SIGUSR1:
            try: os.kill(pid, number)
            except OSError: pass
print("alive")""",
    ),
    "the parent's own order to kill": Attack(
        why="the init ends all when its monitor says so, or its job",
        code="""
import os, signal, time
try: os.kill(os.getppid(), signal.SIGUSR1)
except OSError: pass
time.sleep(0.2)""",
        verdicts=ENDED,
    ),
    "signals by other calls": Attack(
        why="kill is one of many",
        code=LIBC
        + _OTHERS
        + """
for pid in others:
    system(129, 138, pid, 9, bytes(128))
    system(297, 240, pid, pid, 9, bytes(128))
    system(200, 130, pid, 9)
    system(234, 131, pid, pid, 9)
    try: signal.pidfd_send_signal(os.pidfd_open(pid), 9)
    except OSError: pass
print("alive")""",
        # Where signals are held by user ids or namespaces these may reach the program's own process group.
        verdicts=ENDED,
    ),
    "signals to the process group": Attack(
        why="the group of who started it reaches out of a process namespace",
        code="""
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for group in (0, os.getpgid(0)):
    try: os.killpg(group, signal.SIGTERM)
    except OSError: pass
try: os.kill(0, signal.SIGKILL)
except OSError: pass""",
        verdicts=ENDED,
    ),
    "a pipe that signals its owner": Attack(
        why="the kernel signals whoever is named, with whatever signal",
        code="""
import fcntl, os, signal
for pid in (os.getppid(), LAUNCHER, CLIENT, -os.getpgid(0)):
    r, w = os.pipe()
    try:
        fcntl.fcntl(r, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(r, fcntl.F_SETOWN, pid)
        fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
    except OSError: continue
    os.write(w, b"x")
    print("ESCAPED")""",
    ),
    "limits of the parent": Attack(
        why="a process may set limits of others of its user: without processor time they die, without files they lie",
        code=LIBC
        + _OTHERS
        + """
import resource
for pid in others:
    for number in range(16):
        try: resource.prlimit(pid, number, (0, 0))
        except OSError: continue
        print("ESCAPED", pid, number)""",
    ),
    "the parent last in line": Attack(
        why="who is watched must not decide when the watcher runs",
        code=LIBC
        + _OTHERS
        + """
param = ctypes.c_int(0)
for pid in others:
    for done in (
        system(144, 119, pid, 5, ctypes.byref(param)),
        system(203, 122, pid, 8, (ctypes.c_ulong * 1)(1)),
        system(251, 30, 1, pid, 3 << 13),
        libc.setpriority(0, pid, 19),
    ):
        if done >= 0: print("ESCAPED", pid)
for which in (1, 2):
    if libc.setpriority(which, 0, 19) == 0: print("ESCAPED", which)"""
        + _BURN,
        verdicts=CPU,
    ),
    "first in line": Attack(
        why="nobody else would run",
        code=LIBC
        + """
param = ctypes.c_int(50)
for policy in (1, 2):
    if system(144, 119, 0, policy, ctypes.byref(param)) == 0: print("ESCAPED")
if system(251, 30, 1, 0, 1 << 13) == 0 or libc.setpriority(0, 0, -20) == 0: print("ESCAPED")""",
    ),
    "preferred when memory runs out": Attack(
        why="the kernel would end others first",
        code="""
import os
def write(path, text):
    try: open(path, "r+b", 0).write(text.encode())
    except OSError: return
    print("ESCAPED", path)
score = int(open("/proc/self/oom_score_adj").read())
if score != 1000 and os.stat("/proc/self").st_uid == os.getuid(): print("ESCAPED", score)
write("/proc/self/oom_score_adj", "-1000")
write(f"/proc/{os.getppid()}/oom_score_adj", "1000")""",
    ),
    "a flood of child signals": Attack(
        why="each wakes the parent, and fills its pipe",
        code="""
import os, signal
for _ in range(20000):
    try: os.kill(os.getppid(), signal.SIGCHLD)
    except OSError: break""",
    ),
    "secrets of launcher and client": Attack(
        why="their memory, environment, folders and descriptors are theirs",
        code="""
import os
for pid in (os.getppid(), LAUNCHER, CLIENT):
    for name in ("mem", "environ", "maps", "fd/0", "root/etc/passwd", "cwd/tests", "stack", "syscall"):
        try: found = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
        except OSError: continue
        print("ESCAPED", pid, name)""",
        # A process table shows command lines of others, and a client of the job's own user more than that.
        works_in=frozenset({"uid", "read-only"}),
    ),
    "last words forged": Attack(
        why="what goes wrong before a program runs is told over a pipe and an exit code",
        code="""
import os
for number in range(40):
    if number not in (1, 2):
        try: os.write(number, b'{"broken": "forged", "refused": "forged"}')
        except OSError: pass
os.write(2, b'{"broken": "forged"}')
os._exit(127)""",
    ),
    "a brother instead of a child": Attack(
        why="a clone may ask to be its parent's child",
        code=LIBC
        + """
pid = system(56, 220, 0x8000 | 17, 0, 0, 0, 0)
if pid == 0:
    time.sleep(86397)
    os._exit(0)""",
    ),
    "children that end without a signal, or with one that kills": Attack(
        why="a clone may ask for any signal at its end, or none",
        code=LIBC
        + """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for number in (0, 15, 64, 10):
    for flags in (0, 0x8000):
        if system(56, 220, flags | number, 0, 0, 0, 0) == 0: os._exit(0)
time.sleep(0.2)""",
        verdicts=ENDED,
    ),
    "a first thread that ends, others that sleep": Attack(
        why="it is a zombie that nobody can wait for",
        code=LIBC
        + """
threading.Thread(target=time.sleep, args=(1000,)).start()
libc.syscall(ctypes.c_long(60 if x86 else 93), 0)""",
        verdicts=frozenset({"wall_limit"}),
    ),
}

HERITAGE = {
    "sockets among the objects": Attack(
        why="a fork has its parent's objects: one that is still open would speak to monitor or client",
        code="""
import gc, os
for thing in gc.get_objects():
    if type(thing).__name__ in ("socket", "SSLSocket", "FileIO", "BufferedReader", "BufferedWriter"):
        try: number = thing.fileno()
        except (OSError, ValueError): continue
        try: os.fstat(number)
        except OSError: continue
        if number > 2: print("ESCAPED", thing)""",
    ),
    "methods of the parent's objects": Attack(
        why="the parent's code is there, too; it runs with the program's own rights",
        code="""
import gc
for thing in gc.get_objects():
    if type(thing).__module__.startswith("rlhf"):
        for name in ("kill_step", "kill_all", "serve", "end", "_reap", "_accept", "take_position", "_ended"):
            try: getattr(thing, name)()
            except BaseException: pass""",
        verdicts=ENDED | {"wall_limit"},
    ),
    "limits in the parent's frames": Attack(
        why="they are objects, but the kernel and the monitor have their own",
        code="""
import gc, sys
frame, found = sys._getframe(), []
while frame:
    found += frame.f_locals.values()
    frame = frame.f_back
for thing in [*found, *gc.get_objects()]:
    if type(thing).__name__ == "Limits":
        for name in ("cpu_s", "wall_s", "processes", "memory_mb"): object.__setattr__(thing, name, 10**6)
    if type(thing).__name__ == "Cell": object.__setattr__(thing, "without", {"seccomp", "watcher", "landlock"})"""
        + _BURN,
        verdicts=CPU,
    ),
    "the sandbox's own modules": Attack(
        why="a program must not find where they lie",
        code="""
import importlib, sys
for name in ("rlhf", "rlhf.sandbox.kernel", "tests"):
    try: importlib.import_module(name)
    except ImportError: continue
    print("ESCAPED", name)""",
    ),
    "an interpreter that is not fresh": Attack(
        why="what the launcher set up must not be told from a start of its own",
        code="""
import atexit, gc, os, random, signal, sys, threading
if atexit._ncallbacks() or not gc.isenabled() or threading.active_count() != 1: print("ESCAPED")
if signal.set_wakeup_fd(-1) != -1 or signal.getsignal(signal.SIGUSR1) != signal.SIG_DFL: print("ESCAPED")
if signal.pthread_sigmask(signal.SIG_BLOCK, []) or sys.argv != ["main.py"] or len(os.environ) > 9: print("ESCAPED")
if signal.getsignal(signal.SIGCHLD) != signal.SIG_DFL: print("ESCAPED")""",
    ),
}
