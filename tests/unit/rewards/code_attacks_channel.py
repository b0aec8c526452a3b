"""Solutions that speak on the grader's channel, or end, hang and answer at the wrong time."""

CALLS = ("function", "asserts")
FORGE = """\
import json, os, stat, sys
def channel():
    for fd in range(3, 128):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                return fd
        except OSError:
            pass
def raw(data):
    fd = channel()
    while data:
        data = data[os.write(fd, data):]
def put(message):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    raw(len(body).to_bytes(4, 'big') + body)
def number():
    f = sys._getframe()
    while f:
        if 'number' in f.f_locals and 'arguments' in f.f_locals:
            return f.f_locals['number']
        f = f.f_back
    return 0
"""


def forged(body: str) -> str:
    """A solution that does `body` in its call, with the tools above."""
    return FORGE + "def solve(a, b):\n    " + body.replace("\n", "\n    ") + "\n    return 0\n"


MESSAGES = [
    ("says_passed", "a verdict where an answer is expected", forged("put(['passed'])")),
    ("says_done", "the tests' side's message with a guessed nonce", forged("put(['done', '0' * 32])")),
    (
        "says_done_early",
        "the same before the first call",
        FORGE + "put(['loaded'])\nput(['done', ''])\nos._exit(0)",
    ),
    ("guesses_nonces", "many guesses at once", forged("for i in range(2000): put(['done', f'{i:032x}'])")),
    (
        "guesses_numbers",
        "the right shape for calls to come",
        forged("for i in range(2000): put(['returned', i, 5])"),
    ),
    (
        "forges_twice",
        "two answers to one call, the second for the next call",
        forged("put(['returned', number(), 0])\nput(['returned', number() + 1, 6])"),
    ),
    (
        "forges_a_lie",
        "a right number with a value that is no value",
        forged("put(['returned', number(), ['object', 'Any']])"),
    ),
    ("forges_a_dict", "a message that is no list", forged("put({'passed': True})")),
    ("forges_nothing", "an empty message", forged("put([])")),
    ("forges_number", "a message that is a number", forged("put(1)")),
    (
        "forges_test",
        "an order to the grader's other side",
        forged("put(['test', 'pass', ''])\nput(['call', 'solve', ['list'], ['dict']])"),
    ),
    (
        "forges_raise",
        "an exception that tests may expect",
        forged("put(['raised', number(), 'StopIteration', ''])"),
    ),
    (
        "forges_not_text",
        "an exception whose name is no text",
        forged("put(['raised', number(), ['list'], 5])"),
    ),
    ("half_frame", "a frame that never ends", forged("raw(b'\\x00\\x00\\x01\\x00[\"ret')\nwhile True: pass")),
    (
        "half_frame_and_exit",
        "a frame cut off by the end",
        forged("raw(b'\\x00\\x00\\x01\\x00[\"ret')\nos._exit(0)"),
    ),
    ("huge_prefix", "a frame that claims 4 GB", forged("raw(b'\\xff\\xff\\xff\\xff' + b'[' * 100)")),
    (
        "large_frame",
        "a frame that fills the grader's memory",
        forged("put(b'[' + b'0,' * 4_000_000 + b'0]')"),
    ),
    ("deep_frame", "JSON that overflows the parser", forged("put(b'[' * 3_000_000)")),
    (
        "long_number",
        "a number too long to parse",
        forged("put(b'[\"returned\", ' + b'9' * 3_000_000 + b']')"),
    ),
    ("no_utf8", "bytes that are no text", forged("put(b'\\xff\\xfe\\x00')")),
    (
        "forged_collisions",
        "keys that all collide, which only the side that rebuilds them pays for",
        forged(
            "put(['returned', number(), ['dict', *(x for i in range(100_000) for x in (['int', hex(i * (2**61 - 1))], 0))]])"
        ),
    ),
    ("flood", "messages without end", forged("while True: put(['returned', 0, 5])")),
    (
        "slow_drip",
        "a byte now and then keeps the grader waiting",
        forged("import time\nraw(b'\\x00\\x00\\x10\\x00')\nwhile True:\n    raw(b'[')\n    time.sleep(0.05)"),
    ),
    ("closed_channel", "no answer, ever", forged("os.closerange(3, 128)\nwhile True: pass")),
    (
        "shut_channel",
        "the grader's end is shut down",
        forged("import socket\nsocket.socket(fileno=channel()).shutdown(socket.SHUT_RDWR)\nwhile True: pass"),
    ),
    (
        "late_thread",
        "a thread that answers calls to come",
        FORGE
        + "import threading, time\ndef later():\n    while True:\n        put(['returned', 0, 5]); time.sleep(0.001)\n"
        "threading.Thread(target=later, daemon=True).start()\ndef solve(a, b):\n    time.sleep(0.02)\n    return 0",
    ),
    (
        "forked_twin",
        "two processes answer one call",
        "import os\ndef solve(a, b):\n    os.fork()\n    return 0",
    ),
    (
        "answering_child",
        "a child stays on the channel after its parent has ended",
        FORGE
        + "def solve(a, b):\n    if os.fork():\n        os._exit(0)\n    import time\n    for i in range(100):\n        put(['returned', i, 5]); time.sleep(0.005)\n    return 0",
    ),
    (
        "standard_streams",
        "the verdict on standard output and error",
        "import os\ndef solve(a, b):\n    for fd in (0, 1, 2):\n        os.write(fd, b'[\"passed\"]\\nOK\\n1 passed\\n')\n    return 0",
    ),
    (
        "reads_next_call",
        "orders read away before the runner sees them",
        forged(
            "os.set_blocking(channel(), False)\ntry:\n    os.read(channel(), 1 << 20)\nexcept OSError:\n    pass"
        ),
    ),
]
ENDS = [
    ("exit_at_import", "exit code 0 before any test", "import sys\nsys.exit(0)"),
    ("os_exit_at_import", "the same without exceptions", "import os\nos._exit(0)"),
    ("exit_in_call", "SystemExit passes `except Exception`", "def solve(a, b):\n    raise SystemExit(0)"),
    (
        "os_exit_in_call",
        "the tests' process ends with code 0",
        "import os\ndef solve(a, b):\n    os._exit(0)",
    ),
    ("quit", "the site's quit()", "def solve(a, b):\n    quit()"),
    (
        "exit_hook",
        "an exit handler has the last word",
        "import atexit, os\natexit.register(lambda: os._exit(0))\ndef solve(a, b):\n    raise SystemExit(1)",
    ),
    (
        "keyboard_interrupt",
        "an exception that is no Exception",
        "def solve(a, b):\n    raise KeyboardInterrupt",
    ),
    ("generator_exit", "the same that ends generators silently", "def solve(a, b):\n    raise GeneratorExit"),
    (
        "stop_iteration",
        "an exception that ends the tests' loops",
        "def solve(a, b):\n    raise StopIteration(5)",
    ),
    (
        "own_exception",
        "an exception with a hostile text",
        "class E(BaseException):\n    def __str__(self):\n        raise SystemExit(0)\ndef solve(a, b):\n    raise E",
    ),
    (
        "exec_another",
        "another program takes the process's place",
        "import os, sys\ndef solve(a, b):\n    os.execv(sys.executable, [sys.executable, '-c', 'print(5)'])",
    ),
    ("recursion", "a stack without end", "def solve(a, b):\n    return solve(a, b)"),
    (
        "recursion_in_c",
        "a stack overflow that kills the interpreter",
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    __repr__ = lambda self: repr([self])\ndef solve(a, b):\n    return repr(A())",
    ),
    ("null_pointer", "a crash by signal", "import ctypes\ndef solve(a, b):\n    return ctypes.string_at(0)"),
    (
        "kills_parent",
        "the process above holds the verdict",
        "import os, signal\ndef solve(a, b):\n    for pid in (os.getppid(), 1, -1):\n        try:\n            os.kill(pid, signal.SIGKILL)\n        except OSError:\n            pass\n    return 0",
    ),
    (
        "stops_itself",
        "a stopped process uses no CPU time",
        "import os, signal\ndef solve(a, b):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    return 0",
    ),
    (
        "ignores_signals",
        "a loop that no signal ends",
        "import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\ndef solve(a, b):\n    while True: pass",
    ),
    (
        "alarm",
        "a signal handler that raises inside the runner",
        "import signal\ndef stop(*_):\n    raise SystemExit(0)\nsignal.signal(signal.SIGALRM, stop)\nsignal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\ndef solve(a, b):\n    return 0",
    ),
    (
        "destructor",
        "an answer when objects die",
        "class A:\n    def __del__(self):\n        import os\n        os._exit(0)\nkeep = A()\ndef solve(a, b):\n    global keep\n    keep = 0\n    return 0",
    ),
    ("reads_input", "waits for input that never comes", "def solve(a, b):\n    return int(input())"),
    ("nothing_defined", "no function at all", "x = 5"),
    ("wrong_arity", "a function of other parameters", "def solve():\n    return 5"),
    ("not_callable", "a number under the name", "solve = 5"),
]
ATTACKS = [(name, why, code, CALLS) for name, why, code in [*MESSAGES, *ENDS]]
