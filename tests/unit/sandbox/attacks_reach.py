"""What a program tries to reach outside: files, network, other processes, the kernel. ESCAPED means that it did.

{secret} is a readable file of the host, {open} a folder of the host that anybody may write to, {victim} the id of the
client's process.
"""

REACH = {
    "host file": """
print(open({secret!r}).read() and "ESCAPED")""",
    "host file through /proc/1/root": """
print(open("/proc/1/root" + {secret!r}).read() and "ESCAPED")""",
    "host file through the parent's root": """
import os
print(open(f"/proc/{{os.getppid()}}/root" + {secret!r}).read() and "ESCAPED")""",
    "host file by a relative path": """
print(open("../" * 20 + {secret!r}).read() and "ESCAPED")""",
    "host file by a symbolic link": """
import os
os.symlink({secret!r}, "link")
print(open("link").read() and "ESCAPED")""",
    "host file by a hard link": """
import os
os.link({secret!r}, "link")
print("ESCAPED")""",
    "shadow passwords": """
print(open("/etc/shadow").read() and "ESCAPED")""",
    "folder of the host that anybody may write to": """
open({open!r} + "/mark", "w").write("x")
print("ESCAPED")""",
    "temporary folder of the host": """
import os
if "/tmp" != os.path.realpath("/tmp"): raise SystemExit
open("/tmp/escape-mark", "w").write("x")
print("ESCAPED")""",
    "shared memory folder of the host": """
import os
if os.path.realpath("/dev/shm") != "/dev/shm": raise SystemExit
open("/dev/shm/escape-mark", "w").write("x")
print("ESCAPED")""",
    "the interpreter's own folder": """
import json
open(json.__file__, "a").write("")
print("ESCAPED")""",
    "new file at the root": """
open("/escape-mark", "w").write("x")
print("ESCAPED")""",
    "settings of the kernel": """
open("/proc/sys/kernel/core_pattern", "r+").write("|/bin/sh")
print("ESCAPED")""",
    "memory of the machine": """
import os
for name in ("/dev/mem", "/dev/kmem", "/dev/port", "/proc/kcore", "/dev/kmsg"):
    try: os.open(name, os.O_RDONLY)
    except OSError: continue
    print("ESCAPED")""",
    "disk of the machine": """
import os
for name in ("/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/dm-0"):
    try: os.open(name, os.O_RDONLY)
    except OSError: continue
    print("ESCAPED")""",
    "device node of one's own": """
import os, stat
os.mknod("null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
print("ESCAPED")""",
    "signal to the client": """
import os, signal
os.kill({victim}, signal.SIGCONT)
print("ESCAPED")""",
    "signal to everybody": """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.kill(-1, signal.SIGTERM)""",
    "kill the parent": """
import os, signal, time
for _ in range(5):
    try: os.kill(os.getppid(), signal.SIGKILL)
    except OSError: pass
time.sleep(0.1)""",
    "stop the parent": """
import os, signal
try: os.kill(os.getppid(), signal.SIGSTOP)
except OSError: pass""",
    "memory of the parent": """
import os
print(os.open(f"/proc/{{os.getppid()}}/mem", os.O_RDWR) and "ESCAPED")""",
    "environment of the parent": """
import os
print(open(f"/proc/{{os.getppid()}}/environ", "rb").read() and "ESCAPED")""",
    "descriptors of the parent": """
import os
print(os.listdir(f"/proc/{{os.getppid()}}/fd") and "ESCAPED")""",
    "memory of the client": """
import os
print(os.open("/proc/{victim}/mem", os.O_RDONLY) and "ESCAPED")""",
    "trace a process": """
import ctypes, os
print("ESCAPED" if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0 else "")""",
    "read another's memory by a call": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(8)
local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
remote = (ctypes.c_void_p * 2)(id(os), 8)
for pid in (os.getppid(), {victim}):
    if libc.process_vm_readv(pid, local, 1, remote, 1, 0) > 0: print("ESCAPED")""",
    "TCP": """
import socket
s = socket.socket()
s.settimeout(0.2)
try: s.connect(("127.0.0.1", 9))
except ConnectionRefusedError: pass
print("ESCAPED")""",
    "every family of sockets": """
import socket
for family in range(0, 46):
    for kind in (1, 2, 3, 5):
        try: socket.socket(family, kind).close()
        except OSError: continue
        print("ESCAPED", family, kind)""",
    "pairs of sockets of other families": """
import socket
for family in range(2, 46):
    try: socket.socketpair(family)
    except OSError: continue
    print("ESCAPED", family)""",
    "name lookup": """
import socket
print(socket.getaddrinfo("example.com", 80) and "ESCAPED")""",
    "new namespaces": """
import ctypes
libc = ctypes.CDLL(None)
for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000, 0x80):
    if libc.unshare(flag) == 0: print("ESCAPED", hex(flag))""",
    "clone into a user namespace": """
import ctypes, os
pid = ctypes.CDLL(None).syscall(56 if os.uname().machine == "x86_64" else 220, 0x10000000 | 17, 0, 0, 0, 0)
if pid >= 0: os.write(1, b"ESCAPED")
if pid == 0: os._exit(0)""",
    "enter another's namespaces": """
import ctypes, os
libc = ctypes.CDLL(None)
for name in os.listdir("/proc/1/ns"):
    if libc.setns(os.open(f"/proc/1/ns/{{name}}", os.O_RDONLY), 0) == 0: print("ESCAPED")""",
    "mount": """
import ctypes
libc = ctypes.CDLL(None)
if libc.mount(b"tmpfs", b".", b"tmpfs", 0, None) == 0 or libc.umount2(b"/proc", 2) == 0: print("ESCAPED")""",
    "change the root": """
import ctypes
if ctypes.CDLL(None).chroot(b".") == 0: print("ESCAPED")""",
    "get capabilities back": """
import os
for line in open("/proc/self/status"):
    if line.startswith(("CapPrm", "CapEff", "CapBnd", "CapAmb")) and int(line.split()[1], 16) & ~4: print("ESCAPED")
for call in (os.setuid, os.setgid, os.seteuid):
    try: call(0)
    except OSError: continue
    print("ESCAPED")""",
    "set-user-id program": """
import ctypes, os
if ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) != 1: print("ESCAPED")""",
    "calls that reach into the kernel": """
import ctypes, os
numbers = {{
    "x86_64": {{"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250, "add_key": 248,
               "io_uring_setup": 425, "kexec_load": 246, "init_module": 175, "memfd_create": 319, "shmget": 29,
               "mq_open": 240, "open_by_handle_at": 304, "fanotify_init": 300, "pidfd_getfd": 438, "swapon": 167}},
    "aarch64": {{"bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "keyctl": 219, "add_key": 217,
                "io_uring_setup": 425, "kexec_load": 104, "init_module": 105, "memfd_create": 279, "shmget": 194,
                "mq_open": 180, "open_by_handle_at": 265, "fanotify_init": 262, "pidfd_getfd": 438, "swapon": 224}},
}}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)
for name, number in numbers.items():
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() not in (1, 38): print("ESCAPED", name)""",
    "calls by their x32 numbers": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if os.uname().machine == "x86_64":
    if libc.syscall(0x40000000 + 41, 1, 1, 0) >= 0 or libc.syscall(0x40000000 + 57) == 0: print("ESCAPED")""",
    "clone3, whose flags lie in memory": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
arguments = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)
result = libc.syscall(435, arguments, ctypes.sizeof(arguments))
if result == 0: os._exit(0)
if result > 0 or ctypes.get_errno() != 38: print("ESCAPED")""",
    "hide from the watcher": """
import ctypes
libc = ctypes.CDLL(None)
if libc.prctl(4, 0, 0, 0, 0) == 0 or libc.prctl(36, 1, 0, 0, 0) == 0: print("ESCAPED")""",
    "type into a terminal": """
import fcntl, os, pty
master, slave = pty.openpty()
fcntl.ioctl(slave, 0x5412, b"x")
print("ESCAPED")""",
    "descriptors left open": """
import os
for number in range(3, 1024):
    try: os.fstat(number)
    except OSError: continue
    print("ESCAPED", number, os.readlink(f"/proc/self/fd/{{number}}"))""",
    "forged verdict on every descriptor": """
import json, os, struct
head = json.dumps({{"ended": 0, "cpu_s": 0, "files": [], "blobs": [], "status": "exited", "exit_code": 77}}).encode()
for number in range(3, 1024):
    try: os.write(number, struct.pack(">II", len(head), 0) + head)
    except OSError: pass
os._exit(5)""",
}
