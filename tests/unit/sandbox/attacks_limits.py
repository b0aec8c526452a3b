"""How a program tries to use more than it may, or to outlive its job. Each tells which verdicts are right.

An attack that only fails to get what it wanted ends as `exited` (or by a signal); ESCAPED means that it got it.
"""

_BURN = "\nwhile True: pass"

LIMITS = {
    "burn CPU": (_BURN, {"cpu_limit"}),
    "burn CPU, SIGXCPU ignored": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)" + _BURN,
        {"cpu_limit"},
    ),
    "burn CPU in children that nobody waits for": (
        """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.08
        while time.process_time() < end: pass
        os._exit(0)
    time.sleep(0.02)""",
        {"cpu_limit", "process_limit", "wall_limit", "exited"},
    ),
    "burn CPU in four processes": (
        "import os\nos.fork()\nos.fork()" + _BURN,
        {"cpu_limit"},
    ),
    "burn CPU in threads": (
        "import threading\nfor _ in range(4): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
        {"cpu_limit"},
    ),
    "sleep": ("import time\ntime.sleep(1000)", {"wall_limit"}),
    "wait for input": ("import os\nr, w = os.pipe()\nos.read(r, 1)", {"wall_limit"}),
    "stop itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", {"wall_limit"}),
    "stop a child and wait": (
        "import os, signal\npid = os.fork()\nif pid == 0: os.kill(os.getpid(), signal.SIGSTOP)\nos.waitpid(pid, 0)",
        # Where signals are held by the filter, not even a child can stop itself.
        {"wall_limit", "exited"},
    ),
    "ignore every signal": (
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\ntime.sleep(1000)",
        {"wall_limit"},
    ),
    "one large allocation": ("x = bytearray(3 << 30)\nprint('ESCAPED')", {"exited"}),
    "many small allocations": (
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        {"exited", "memory_limit"},
    ),
    "memory in children": (
        """
import os, time
for _ in range(6):
    if os.fork() == 0:
        x = bytearray(b"x" * (60 << 20))
        time.sleep(5)
        os._exit(0)
time.sleep(5)""",
        {"memory_limit"},
    ),
    "mapped memory in children": (
        """
import mmap, os, time
for _ in range(6):
    if os.fork() == 0:
        x = mmap.mmap(-1, 60 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for i in range(0, len(x), 4096): x[i] = 1
        time.sleep(5)
        os._exit(0)
time.sleep(5)""",
        # The filter denies it; if it did not, the watcher would count it.
        {"memory_limit", "wall_limit"},
    ),
    "pipes full of data": (
        """
import fcntl, os
pipes, total = [], 0
try:
    while total < 300 << 20:
        r, w = os.pipe()
        pipes.append((r, w))
        os.set_blocking(w, False)
        try: fcntl.fcntl(w, 1031, 1 << 20)
        except OSError: pass
        try:
            while True: total += os.write(w, b"x" * 65536)
        except BlockingIOError: pass
except OSError: pass
print("ESCAPED" if total >= 300 << 20 else "")""",
        {"exited"},
    ),
    "fork bomb": (
        """
import os, time
for _ in range(300):
    try: pid = os.fork()
    except OSError: break
    if pid == 0:
        time.sleep(5)
        os._exit(0)
else: print("ESCAPED")""",
        {"exited", "process_limit"},
    ),
    "fork bomb in sessions of its own": (
        """
import os, time
for _ in range(200):
    try: pid = os.fork()
    except OSError: break
    if pid == 0:
        os.setsid()
        try: os.fork()
        except OSError: pass
        time.sleep(5)
        os._exit(0)
else: print("ESCAPED")""",
        {"exited", "process_limit"},
    ),
    "thread bomb": (
        """
import threading, time
try:
    for _ in range(300): threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
    print("ESCAPED")
except RuntimeError: pass""",
        {"exited", "process_limit"},
    ),
    "zombies": (
        """
import os
for _ in range(300):
    try: pid = os.fork()
    except OSError: break
    if pid == 0: os._exit(0)
else: print("ESCAPED")""",
        {"exited", "process_limit"},
    ),
    "endless output": ("import os\nwhile True: os.write(1, b'x' * 65536)", {"output_limit"}),
    "endless errors": ("import sys\nwhile True: print('x' * 100, file=sys.stderr)", {"output_limit"}),
    "endless output of a child": (
        "import os\nif os.fork() == 0:\n    while True: os.write(2, b'x' * 65536)\nos.wait()",
        {"output_limit"},
    ),
    "one large file": (
        "with open('f', 'wb') as f:\n    for _ in range(300): f.write(b'x' * (1 << 20))\nprint('ESCAPED')",
        {"exited", "disk_limit", "signalled"},
    ),
    "many files": (
        """
import time
for i in range(100):
    with open(f"f{i}", "wb") as f: f.write(b"x" * (3 << 20))
time.sleep(1.5)
print("ESCAPED")""",
        {"exited", "disk_limit"},
    ),
    "files without a name": (
        """
import os, time
kept = []
for i in range(60):
    kept.append(open(f"f{i}", "wb"))
    os.unlink(f"f{i}")
    kept[-1].write(b"x" * (3 << 20))
    kept[-1].flush()
time.sleep(1.5)
print("ESCAPED")""",
        {"exited", "disk_limit"},
    ),
    "empty files": (
        """
import time
for i in range(30000): open(f"f{i}", "w").close()
time.sleep(1.5)
print("ESCAPED")""",
        {"exited", "disk_limit", "cpu_limit"},
    ),
    "folders in folders": (
        """
import os
for i in range(3000):
    os.mkdir("d")
    os.chdir("d")""",
        {"exited", "cpu_limit", "disk_limit"},
    ),
    "folder that cannot be read": (
        "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')\nos.chmod('a/b', 0)\nos.chmod('a', 0)",
        {"exited"},
    ),
    "core dump": ("import os\nos.abort()", {"signalled"}),
    "recursion": (
        "def f(): return f()\nimport sys\nsys.setrecursionlimit(10**9)\nf()",
        {"exited", "signalled", "memory_limit"},
    ),
    "daemon": (
        """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(86398)
    os._exit(0)
os.wait()""",
        {"exited"},
    ),
    "daemon that holds the output open": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(86398)\nos._exit(0)",
        {"exited"},
    ),
    "exit from a thread": (
        "import os, threading\nthreading.Thread(target=os._exit, args=(9,)).start()\nwhile True: pass",
        {"exited"},
    ),
    "tiny writes without end": ("import os\nwhile True: os.write(1, b'')", {"cpu_limit"}),
}
