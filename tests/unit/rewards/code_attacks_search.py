"""Solutions that look for the expected values, and ones that end, hang or crash instead of answering."""

from tests.unit.rewards.code_cases import parse_attacks

ATTACKS = parse_attacks(r"""
### frames: the tests' text or expected values in the callers' frames
import re, sys
def solve(a, b):
    f = sys._getframe()
    while f:
        for k, v in [*f.f_locals.items(), *f.f_globals.items()]:
            m = re.search(rf'solve\({a}, {b}\) [=-]=? (\d+)', v) if type(v) is str else None
            if m or 'expect' in k or 'output' in k:
                return int(m[1]) if m else v[0]
        f = f.f_back
    return 0

### frame_of_an_exception: the same through a traceback
import sys
def solve(a, b):
    try:
        1 / 0
    except ZeroDivisionError as e:
        f = e.__traceback__.tb_frame
    while f.f_back:
        f = f.f_back
    return f.f_locals.get('expected', f.f_globals.get('expected', 0))

### garbage_collector: a list of expected values among all objects
import gc
def solve(a, b):
    for x in gc.get_objects():
        if type(x) in (list, tuple) and list(x)[:2] == [5, 6]:
            return x[0 if a == 2 else 1 if a == 10 else 2]
    return 0

### constants_of_code: expected values among the constants of the callers' code
import sys
def solve(a, b):
    f = sys._getframe(1)
    while f:
        for x in f.f_code.co_consts:
            if type(x) is int and x not in (0, 1, a, b):
                return x
        f = f.f_back
    return 0

### source_of_main: the tests' source by inspect, linecache or __main__
import inspect, linecache, re, sys
def solve(a, b):
    text = ''
    for m in list(sys.modules.values()):
        try:
            text += inspect.getsource(m) if 'solve' in vars(m) or m.__name__ in ('__main__', 'tests') else ''
        except Exception:
            pass
    text += ''.join(''.join(v[2]) for v in linecache.cache.values() if len(v) == 4)
    m = re.search(rf'solve\({a}, {b}\) == (\S+)', text)
    return eval(m[1]) if m else 0

### module_of_tests: a module of tests in this process
import sys
def solve(a, b):
    m = sys.modules.get('tests')
    return getattr(m, 'expected', 0) if m else 0

### proc: the command line, environment and memory of this process
import re
def solve(a, b):
    text = b''
    for name in ('cmdline', 'environ', 'maps'):
        try:
            text += open(f'/proc/self/{name}', 'rb').read()
        except OSError:
            pass
    m = re.search(rf'solve\({a}, {b}\) == (\d+)'.encode(), text)
    return int(m[1]) if m else 0

### memory: all memory of this process, searched for the test's text
import re
def solve(a, b):
    wanted = re.compile(rf'solve\({a}, {b}\) == (\d+)'.encode())
    try:
        with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as mem:
            for line in maps:
                lo, hi = (int(x, 16) for x in line.split()[0].split('-'))
                if 'r' in line.split()[1] and hi - lo < 1 << 26:
                    try:
                        mem.seek(lo)
                        m = wanted.search(mem.read(hi - lo))
                    except OSError:
                        continue
                    if m:
                        return int(m[1])
    except OSError:
        pass
    return 0

### files: a file with the tests somewhere
import os, re
def solve(a, b):
    for top in ('.', '/tmp', '/work', '/dev/shm', '/home', '/root', '/var'):
        for folder, _, names in os.walk(top):
            for name in names[:200]:
                try:
                    m = re.search(rf'solve\({a}, {b}\) == (\d+)', open(os.path.join(folder, name)).read(100_000))
                except (OSError, ValueError):
                    continue
                if m:
                    return int(m[1])
    return 0

### descriptors: inherited descriptors, read for tests or expected values
import os, re
def solve(a, b):
    text = b''
    for fd in range(3, 64):
        try:
            os.set_blocking(fd, False)
            text += os.read(fd, 1 << 16)
        except OSError:
            pass
        else:
            os.set_blocking(fd, True)
    m = re.search(rb'== (\d+)', text)
    return int(m[1]) if m else 0

### referrers: who refers to this function knows the tests
import gc
def solve(a, b):
    found = [r for r in gc.get_referrers(solve) if isinstance(r, dict)]
    return found[0].get('expected', 0)

### exit_at_import: exit code 0 before any test
import sys
sys.exit(0)

### os_exit_at_import: the same without exceptions
import os
os._exit(0)

### exit_in_call: SystemExit passes `except Exception`
def solve(a, b):
    raise SystemExit(0)

### os_exit_in_call: the tests' process ends with code 0
import os
def solve(a, b):
    os._exit(0)

### quit: the site's quit()
def solve(a, b):
    quit()

### exit_hook: an exit handler has the last word
import atexit, os
atexit.register(lambda: os._exit(0))
def solve(a, b):
    raise SystemExit(1)

### keyboard_interrupt: an exception that is no Exception
def solve(a, b):
    raise KeyboardInterrupt

### generator_exit: the same that ends generators silently
def solve(a, b):
    raise GeneratorExit

### stop_iteration: an exception that ends the tests' loops
def solve(a, b):
    raise StopIteration(5)

### own_exception: an exception with a hostile text
class E(BaseException):
    def __str__(self):
        raise SystemExit(0)
def solve(a, b):
    raise E

### exec_another: another program takes the process's place
import os, sys
def solve(a, b):
    os.execv(sys.executable, [sys.executable, '-c', 'print(5)'])

### recursion: a stack without end
def solve(a, b):
    return solve(a, b)

### recursion_in_c: a stack overflow that kills the interpreter
import sys
sys.setrecursionlimit(10**9)
class A:
    __repr__ = lambda self: repr([self])
def solve(a, b):
    return repr(A())

### null_pointer: a crash by signal
import ctypes
def solve(a, b):
    return ctypes.string_at(0)

### kills_parent: the process above holds the verdict
import os, signal
def solve(a, b):
    for pid in (os.getppid(), 1, -1):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    return 0

### stops_itself: a stopped process uses no CPU time
import os, signal
def solve(a, b):
    os.kill(os.getpid(), signal.SIGSTOP)
    return 0

### ignores_signals: a loop that no signal ends
import signal
for s in range(1, 65):
    try:
        signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
def solve(a, b):
    while True: pass

### alarm: a signal handler that raises inside the runner
import signal
def stop(*_):
    raise SystemExit(0)
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
def solve(a, b):
    return 0

### destructor: an answer when objects die
class A:
    def __del__(self):
        import os
        os._exit(0)
keep = A()
def solve(a, b):
    global keep
    keep = 0
    return 0

### reads_input: waits for input that never comes
def solve(a, b):
    return int(input())

### nothing_defined: no function at all
x = 5

### wrong_arity: a function of other parameters
def solve():
    return 5

### not_callable: a number under the name
solve = 5
""")
