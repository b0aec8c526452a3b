"""The filter against the kernel that runs this: each mechanism bites, and is what bites."""

import pytest

from tests.unit.sandbox.confined import confined

PROBES = {
    "network": "attempt(lambda: socket.socketpair(type=2))",
    "trace": "system('process_vm_readv', os.getpid(), 0, 0, 0, 0, 0)",
    "mounts": "system('open_tree', -100, b'/', 0)",
    "namespaces": "system('unshare', 0)",
    "kernel": "system('adjtimex', bytes(208))",
    "hidden memory": "attempt(lambda: os.memfd_create('x'))",
    "other processes": "system('prlimit64', os.getppid(), 4, None, None)",
    "clone": "system('clone3', None, 0)",
    "fork": "attempt(lambda: os.fork() or os._exit(0))",
    "signals": "attempt(lambda: os.kill(os.getppid(), 0))",
    "files": "attempt(lambda: open('/dev/null', 'w'))",
}
DENIED = dict.fromkeys(PROBES, "EPERM") | {"clone": "ENOSYS"}
STRICT = "files='read-only', may_fork=False, own_pid=os.getpid()"


def probe(mechanism: str, *, without: str = "") -> str:
    code = f"""
kernel.install_filter(seccomp.build_filter(seccomp.Rules({STRICT}, without=frozenset({{{without!r}}}))))
result = {PROBES[mechanism]}
sys.stdout.write(str(result))
"""
    (word,) = confined(code)
    return word


@pytest.mark.parametrize("mechanism", PROBES)
def test_kernel_denies_what_the_filter_names_and_nothing_else_does(mechanism):
    assert probe(mechanism) == DENIED[mechanism]
    assert probe(mechanism, without=mechanism) not in DENIED.values()


def test_threads_start_where_processes_do_not():
    code = f"""
kernel.install_filter(seccomp.build_filter(seccomp.Rules({STRICT})))
import threading
thread = threading.Thread(target=sys.stdout.write, args=("heard",))
thread.start()
thread.join()
sys.stdout.write(" " + attempt(os.fork))
"""
    assert confined(code) == ["heard", "EPERM"]


def test_filter_outlives_exec_and_holds_children():
    code = """
import subprocess
kernel.install_filter(seccomp.build_filter(seccomp.Rules()))
child = "import socket\\ntry: socket.socket()\\nexcept PermissionError: print('denied')"
sys.stdout.write(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout)
"""
    assert confined(code) == ["denied"]


def test_dropped_capabilities_are_gone_for_good():
    code = """
kernel.drop_capabilities()
status = open("/proc/self/status").read()
kept = [line.split() for line in status.splitlines() if line[:6] in ("CapInh", "CapPrm", "CapEff", "CapAmb")]
sys.stdout.write(" ".join(value for _, value in kept))
"""
    assert set(confined(code)) == {"0" * 16}


def test_descriptors_from_a_number_on_are_closed():
    code = """
opened = [os.dup(0) for _ in range(5)]
kernel.close_descriptors_from(3)
sys.stdout.write(" ".join(attempt(lambda: os.fstat(d)) for d in opened))
"""
    assert set(confined(code)) == {"EBADF"}


def test_failed_call_is_an_error_with_its_name():
    code = """
try: kernel.unshare(-1)
except OSError as error: sys.stdout.write(str(error))
try: kernel.call("no such call")
except OSError as error: sys.stdout.write(" " + str(error.errno == errno.ENOSYS))
"""
    words = confined(code)
    assert "unshare:" in words
    assert words[-1] == "True"
