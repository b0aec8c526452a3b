"""Memory, disk, processor time and output in places where nobody looks at first."""

from tests.unit.sandbox.attacks import LIBC, Attack

LIMIT = frozenset({"exited", "memory_limit"})
_TOUCHING = {"cpu_s": 2.0, "wall_s": 8.0}
"""Every page costs time before it costs memory."""
_WAIT = '\ntime.sleep(1.5)\nprint("ESCAPED")\n'

MEMORY = {
    "a page of much shared memory": Attack(
        why="an anonymous shared mapping stays whole while one page of it is mapped",
        code=LIBC
        + """
size = 64 << 20
for _ in range(8):
    start = mapped(size, 0x21)
    libc.memset(start, 1, size)
    libc.munmap(start + 4096, size - 4096)"""
        + _WAIT,
        verdicts=LIMIT,
        limits=_TOUCHING,
    ),
    "a page of a mapped zero device": Attack(
        why="/dev/zero mapped shared is the same kind of memory",
        code=LIBC
        + """
size = 64 << 20
file = os.open("/dev/zero", os.O_RDWR)
for _ in range(8):
    start = mapped(size, 1, file)
    libc.memset(start, 1, size)
    libc.munmap(start + 4096, size - 4096)"""
        + _WAIT,
        verdicts=LIMIT,
        limits=_TOUCHING,
        works_in=frozenset({"uid"}),
    ),
    "zeros read through a mapping": Attack(
        why="reading holes of a shared file in memory allocates its pages",
        code=LIBC
        + """
file = os.open("/dev/zero", os.O_RDONLY)
size = 64 << 20
for _ in range(8):
    start = mapped(size, 1, file, rights=1)
    sum(ctypes.string_at(start + i, 1)[0] for i in range(0, size, 4096))
    libc.munmap(start + 4096, size - 4096)""",
        # It is given a few MB of them, once for all jobs.
        verdicts=LIMIT | {"signalled"},
        limits=_TOUCHING,
    ),
    "large pages pinned in a pipe": Attack(
        why="a byte of a 2 MB page in a pipe keeps the page after it is unmapped",
        code=LIBC
        + """
class Vector(ctypes.Structure): _fields_ = [("start", ctypes.c_void_p), ("size", ctypes.c_size_t)]
page, kept = 2 << 20, []
for _ in range(12):
    start = mapped(16 * page, 0x22)
    first = (start + page - 1) & ~(page - 1)
    libc.madvise(first, 15 * page, 14)
    libc.memset(first, 1, 15 * page)
    kept.append(os.pipe())
    for i in range(15):
        if libc.vmsplice(kept[-1][1], ctypes.byref(Vector(first + i * page, 1)), 1, 0) < 0: raise SystemExit
    libc.munmap(start, 16 * page)"""
        + _WAIT,
        verdicts=LIMIT,
        limits=_TOUCHING,
    ),
    "pairs of sockets full of data": Attack(
        why="what lies in a socket is in no process's memory",
        code=LIBC
        + """
def fill(end):
    count = 0
    end.setblocking(False)
    try: end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    except OSError: pass
    try:
        while True: count += end.send(bytes(32768))
    except BlockingIOError: return count
for _ in range(7):
    if os.fork() == 0: break
pairs, total = [], 0
try:
    while total < 60 << 20:
        pairs.append(socket.socketpair())
        total += sum(map(fill, pairs[-1]))
    print("ESCAPED")
except OSError: pass
time.sleep(0.5)""",
        verdicts=LIMIT,
        limits=_TOUCHING,
    ),
    "processes whose first thread is gone": Attack(
        why="the kernel's table shows no memory for a process whose first thread has ended",
        code=LIBC
        + """
def work():
    x = bytearray(b"x") * (120 << 20)
    time.sleep(2.2)
    os._exit(0)
for _ in range(4):
    if os.fork() == 0:
        threading.Thread(target=work).start()
        libc.syscall(ctypes.c_long(60 if x86 else 93), 0)
time.sleep(1.5)
print("ESCAPED")""",
        verdicts=LIMIT,
        limits=_TOUCHING,
    ),
    "orphans": Attack(
        why="memory of children whose parents are gone",
        code="""
import os, time
for _ in range(5):
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            x = bytearray(b"x") * (80 << 20)
            time.sleep(3)
        os._exit(0)
time.sleep(2.5)
print("ESCAPED")""",
        verdicts=LIMIT,
        limits=_TOUCHING,
    ),
    "huge pages": Attack(
        why="they come from a pool of the machine's that others need",
        code=LIBC + 'mapped(2 << 20, 0x40022)\nprint("ESCAPED")',
    ),
    "locked memory": Attack(why="it cannot be paged out", code=LIBC + 'libc.mlockall(3) or print("ESCAPED")'),
    "asynchronous input rings": Attack(
        why="a number of them is all that the whole machine has",
        code=LIBC + "ring = ctypes.c_ulong()\nsystem(206, 0, 4096, ctypes.byref(ring)) or print('ESCAPED')",
    ),
    "memory shared among many, as a way round the clock": Attack(
        why="a sum over processes that is too high must not keep other limits from being judged",
        code="""
import os, time
x = bytearray(b"x") * (60 << 20)
for _ in range(6):
    if os.fork() == 0: break
time.sleep(1000)""",
        verdicts=frozenset({"wall_limit"}),
    ),
}

_BURST = """
import os, signal, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
"""
_FORKING = {"wall_s": 8.0}
PROCESSOR = {
    "children that vanish": Attack(
        why="a child that nobody waits for takes its processor time with it",
        code=_BURST
        + """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        burn(0.006)
        os._exit(0)
    try: os.wait()
    except ChildProcessError: pass""",
        verdicts=frozenset({"cpu_limit"}),
        limits=_FORKING,
    ),
    "children that vanish, of several parents": Attack(
        why="they compete for cores, which must not look as if the machine were overloaded",
        code=_BURST
        + """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0: break
while True:
    if os.fork() == 0:
        burn(0.006)
        os._exit(0)
    try: os.wait()
    except ChildProcessError: pass""",
        verdicts=frozenset({"cpu_limit"}),
        limits=_FORKING,
    ),
    "many short children": Attack(
        why="each is far below the limit",
        code=_BURST
        + """
while True:
    if os.fork() == 0:
        burn(0.005)
        os._exit(0)
    os.wait()""",
        verdicts=frozenset({"cpu_limit"}),
        limits=_FORKING,
    ),
    "a runner": Attack(
        why="a process that goes on in its child and ends is never the same for two looks",
        code=_BURST
        + """
if os.fork():
    time.sleep(1000)
while True:
    burn(0.004)
    try:
        if os.fork(): os._exit(0)
    except BlockingIOError: pass""",
        verdicts=frozenset({"cpu_limit"}),
        limits=_FORKING,
    ),
    "the soft limit raised": Attack(
        why="SIGXCPU comes at the soft limit, which a process may raise to the hard one",
        code="""
import resource
resource.setrlimit(resource.RLIMIT_CPU, (resource.getrlimit(resource.RLIMIT_CPU)[1],) * 2)
while True: pass""",
        verdicts=frozenset({"cpu_limit"}),
    ),
    "hard limits raised": Attack(
        why="none may be",
        code="""
import resource
for name in dir(resource):
    if name.startswith("RLIMIT_") and name not in ("RLIMIT_CORE", "RLIMIT_SIGPENDING"):
        number = getattr(resource, name)
        soft, hard = resource.getrlimit(number)
        if hard == resource.RLIM_INFINITY: continue
        try: resource.setrlimit(number, (soft, hard + 1))
        except (ValueError, OSError): continue
        print("ESCAPED", name)""",
    ),
    "a first thread that ends, others that burn": Attack(
        why="the process's entry says that it is a zombie",
        code=LIBC
        + """
def burn():
    while True: pass
threading.Thread(target=burn).start()
libc.syscall(ctypes.c_long(60 if x86 else 93), 0)""",
        verdicts=frozenset({"cpu_limit"}),
    ),
    "polite, and in its own way": Attack(
        why="who waits for cores because of its own wish or its own children must not look starved",
        code=_BURST
        + """
os.nice(19)
for _ in range(7):
    if os.fork() == 0: break
while True:
    now = time.time()
    time.sleep(0.15 - now % 0.15)
    burn(0.0004)""",
        verdicts=frozenset({"wall_limit", "cpu_limit"}),
    ),
    "stop all": Attack(
        why="nothing that is stopped ends by itself",
        code="""
import os, signal, time
for _ in range(3):
    if os.fork() == 0: time.sleep(1000)
try: os.kill(-1, signal.SIGSTOP)
except OSError: pass
time.sleep(1000)""",
        verdicts=frozenset({"wall_limit"}),
    ),
}
