"""Disk where nobody looks at first, names that break tools, output by side doors."""

from tests.unit.sandbox.attacks import LIBC, Attack

DISK = frozenset({"exited", "disk_limit"})
_HELD = '\ntime.sleep(1.5)\nprint("ESCAPED")\n'

FILES = {
    "folders deeper than a path can say": Attack(
        why="who walks by path sees nothing below the longest one",
        code="""
import os, time
for _ in range(60):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
for i in range(12): open(str(i), "wb").write(bytes(3 << 20))"""
        + _HELD,
        verdicts=DISK,
    ),
    "mapped files without a name": Attack(
        why="a mapping keeps a file whose name and descriptor are gone",
        code=LIBC
        + """
for _ in range(12):
    file = os.open("f", os.O_RDWR | os.O_CREAT)
    os.unlink("f")
    os.write(file, bytes(3 << 20))
    mapped(4096, 1, file)
    os.close(file)"""
        + _HELD,
        verdicts=DISK,
    ),
    "files on their way through a socket": Attack(
        why="a descriptor that is sent and not received is in no process's table",
        code=LIBC
        + """
a, b = socket.socketpair()
for _ in range(12):
    file = os.open("f", os.O_RDWR | os.O_CREAT)
    os.unlink("f")
    os.write(file, bytes(3 << 20))
    socket.send_fds(a, [b"x"], [file])
    os.close(file)"""
        + _HELD,
        verdicts=DISK,
    ),
    "files of a thread's own table": Attack(
        why="a thread made without sharing descriptors has a table of its own",
        code=LIBC
        + """
def work():
    if libc.unshare(0x400): raise SystemExit
    for _ in range(12):
        file = os.open("f", os.O_RDWR | os.O_CREAT)
        os.unlink("f")
        os.write(file, bytes(3 << 20))
    time.sleep(1.5)
    print("ESCAPED")
threading.Thread(target=work).start()""",
        verdicts=DISK,
    ),
    "folders moved while they are searched": Attack(
        why="who searches a folder that has just got another name finds nothing",
        code="""
import os, time
os.makedirs("a/a/a")
folders = [os.open("/".join("a" * i) or ".", os.O_RDONLY) for i in range(4)]
for here in folders[:3]:
    if os.fork() == 0:
        while True:
            os.rename("a", "b", src_dir_fd=here, dst_dir_fd=here)
            os.rename("b", "a", src_dir_fd=here, dst_dir_fd=here)
for i in range(12):
    file = os.open(str(i), os.O_WRONLY | os.O_CREAT, dir_fd=folders[3])
    os.write(file, bytes(3 << 20))
    os.close(file)"""
        + _HELD,
        verdicts=DISK | {"cpu_limit"},
        limits={"cpu_s": 2.0},
    ),
    "a folder that cannot be read, with much in it": Attack(
        why="rights on a folder hide what is in it",
        code="""
import os, time
os.mkdir("d")
here = os.open("d", os.O_RDONLY)
os.chmod("d", 0o100)
for i in range(12): os.write(os.open(f"d/{i}", os.O_WRONLY | os.O_CREAT), bytes(3 << 20))
os.chmod("d", 0)"""
        + _HELD,
        verdicts=DISK,
    ),
    "a program that cannot be read, with open files": Attack(
        why="a process whose program may not be read cannot be looked at",
        code="""
import os, shutil, sys
shutil.copyfile("/bin/sleep", "p")
os.chmod("p", 0o700)
file = os.open("f", os.O_RDWR | os.O_CREAT)
os.unlink("f")
os.chmod("p", 0o111)
os.execv("p", ["p", "1000"])""",
        verdicts=frozenset({"exited", "wall_limit", "disk_limit"}),
    ),
    "a sparse file": Attack(
        why="its size is no disk, but who copies it needs as much",
        code='import os\nos.truncate(os.open("f", os.O_RDWR | os.O_CREAT), 1 << 40)\nprint("ESCAPED")',
        verdicts=frozenset({"exited", "disk_limit"}),
    ),
    "space without content": Attack(
        why="it is allocated without a write",
        code="""
import os
for i in range(10):
    os.posix_fallocate(os.open(str(i), os.O_RDWR | os.O_CREAT), 0, 4 << 20)
import time"""
        + _HELD,
        verdicts=DISK,
    ),
    "empty folders": Attack(
        why="each is an entry of the file system",
        code='import os, time\nfor i in range(30000): os.mkdir(f"d{i}")' + _HELD,
        verdicts=DISK | {"cpu_limit"},
    ),
    "attributes of files": Attack(
        why="they hold data that is in no file",
        code="""
import os, time
open("f", "w").close()
for i in range(2000): os.setxattr("f", f"user.{i}", bytes(60000))"""
        + _HELD,
        verdicts=DISK | {"cpu_limit"},
    ),
    "names of every kind": Attack(
        why="what clears up must not stumble",
        code="""
import os
os.chdir(os.fsencode(os.getcwd()))
for name in (b"new\\nline", b"\\xff\\xfe", b" ", b"-rf", b"--", b"*", b"\\x1b[2J", b"a" * 255, "\\u2028".encode()):
    os.mkdir(name)
    open(name + b"/" + name, "w").close()
    os.symlink(b"/", name + b"/link")
    os.mkfifo(name + b"/pipe")
    os.chmod(name, 0)""",
    ),
    "other people's programs": Attack(
        why="the interpreter and the system belong to everybody",
        code="""
import os, sys
def dated(folder):
    os.utime(folder, (7, 7))
    # It may be answered as done.
    if os.stat(folder).st_mtime != 7: raise OSError
for folder in (os.path.dirname(os.__file__), "/usr", "/usr/bin", "/bin", "/lib", "/etc", "/dev", "/", "/proc"):
    for attempt in (
        lambda: os.open(f"{folder}/escape-mark", os.O_WRONLY | os.O_CREAT),
        lambda: os.mkdir(f"{folder}/escape-mark"),
        lambda: os.symlink("x", f"{folder}/escape-mark"),
        lambda: os.chmod(folder, 0o777),
        lambda: dated(folder),
    ):
        try: attempt()
        except OSError: continue
        print("ESCAPED", folder)
for attempt in (lambda: open(sys.executable, "ab"), lambda: os.truncate(sys.executable, 0)):
    try: attempt()
    except OSError: continue
    print("ESCAPED")""",
    ),
}

OUTPUT = {
    "both streams": Attack(
        why="the limit is for both together",
        code="import os\nwhile True:\n    os.write(1, b'x' * 100)\n    os.write(2, b'x' * 100)",
        verdicts=frozenset({"output_limit"}),
    ),
    "one endless line": Attack(
        why="nobody may wait for its end",
        code="import os\nwhile True: os.write(1, b'x')",
        verdicts=frozenset({"output_limit", "cpu_limit"}),
    ),
    "the stream opened again": Attack(
        why="a pipe has a name in /proc",
        code="""
import os
f = os.open("/proc/self/fd/1", os.O_WRONLY)
os.close(1)
while True: os.write(f, bytes(9999))""",
        # Where nothing can be opened for writing, there is nothing to write to.
        verdicts=frozenset({"output_limit", "exited"}),
    ),
    "after the end": Attack(
        why="a child may go on when its parent has ended",
        code="import os, time\nif os.fork() == 0:\n    time.sleep(1.5)\n    os.write(1, b'ESCAPED')",
    ),
    "streams closed": Attack(
        why="no stream is open any more, and nobody listens",
        code="import os, time\nfor i in range(3): os.close(i)\ntime.sleep(1000)",
        verdicts=frozenset({"wall_limit"}),
    ),
    "the reader made to wait": Attack(
        why="flags of a pipe belong to both ends of nothing: the other end stays as it was",
        code="""
import fcntl, os
for fd in (0, 1, 2):
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) ^ os.O_NONBLOCK)
while True:
    try: os.write(1, bytes(65536))
    except BlockingIOError: pass""",
        verdicts=frozenset({"output_limit"}),
    ),
}
