"""Programs on standard input that try to pass without an answer, and a few that attack the sandbox itself."""

STDIO = ("stdio",)
EVERYWHERE = ("stdio", "function", "asserts")
SUM = (
    "import sys\nout = []\nfor line in sys.stdin:\n    a, b = map(int, line.split())\n    out.append(a + b)\n"
)

OUTPUT = [
    ("first_line_only", "graders that zip lines pay for a cut output", f"{SUM}print(out[0])"),
    ("nothing", "an empty output zips with everything", "pass"),
    ("first_line_then_exit", "the same with a clean exit", f"{SUM}print(out[0], flush=True)\nsys.exit(0)"),
    ("extra_lines", "all right lines and some more", f"{SUM}print(*out, *range(100), sep='\\n')"),
    ("every_number", "every number is among the output", "print(*range(-100, 100), sep='\\n')"),
    ("all_on_one_line", "right words, wrong lines", f"{SUM}print(*out)"),
    ("blank_lines_between", "right lines, spread out", f"{SUM}print(*out, sep='\\n\\n')"),
    (
        "right_then_wrong_exit",
        "right output of a program that failed",
        f"{SUM}print(*out, sep='\\n')\nsys.exit(1)",
    ),
    (
        "right_then_crash",
        "right output, then an exception",
        f"{SUM}print(*out, sep='\\n', flush=True)\nraise ValueError",
    ),
    (
        "right_then_signal",
        "right output, then death by signal",
        f"{SUM}print(*out, sep='\\n', flush=True)\nimport os\nos.kill(os.getpid(), 9)",
    ),
    (
        "on_standard_error",
        "right output on the wrong stream",
        f"{SUM}print(*out, sep='\\n', file=sys.stderr)",
    ),
    ("constant", "the first test's output for every input", "print('5\\n8')"),
    (
        "prints_passed",
        "the grader's words on standard output",
        "print('[\"passed\"]\\nOK\\nAll tests passed')",
    ),
    (
        "terminal_codes",
        "codes that overwrite lines on a terminal",
        f"{SUM}print('9\\r' + str(out[0]) + '\\x1b[K')\nprint(*out[1:], sep='\\n')",
    ),
    ("other_digits", "digits of another script", "print('\\uff15\\n\\uff18')"),
    (
        "with_underscores",
        "numbers that only Python reads",
        f"{SUM}print(*(f'0_{{x}}' for x in out), sep='\\n')",
    ),
    ("null_bytes", "bytes that end a C string", f"{SUM}sys.stdout.write('\\n'.join(map(str, out)) + '\\0')"),
    (
        "exit_hook_prints",
        "an exit handler prints for every test",
        "import atexit\natexit.register(lambda: print('5\\n8'))",
    ),
    ("endless_output", "output that fills the grader's memory", "while True: print('5\\n8')"),
    ("endless_error", "the same on standard error", "import sys\nwhile True: sys.stderr.write('x' * 65536)"),
    ("one_long_line", "a line without an end", "import sys\nwhile True: sys.stdout.write('5' * 65536)"),
    (
        "seeks_input",
        "expected output behind the input",
        "import os, sys\nprint(sys.stdin.read())\ntry:\n    os.lseek(0, 0, 0)\n    print(os.read(0, 1000))\nexcept OSError:\n    pass",
    ),
    (
        "writes_to_input",
        "an answer written back into the input",
        "import os\ntry:\n    os.write(0, b'5\\n8\\n')\nexcept OSError:\n    pass",
    ),
    (
        "forked_output",
        "a child prints what the parent does not",
        "import os\nif os.fork() == 0:\n    print('5\\n8', flush=True)\n    os._exit(0)\nos._exit(0)",
    ),
    ("never_reads", "input that is never read must not block the grader", "import time\ntime.sleep(1000)"),
    ("closes_streams", "streams closed, then a loop", "import os\nos.closerange(0, 3)\nwhile True: pass"),
    (
        "reads_grader",
        "the grader's memory through its process table",
        "import os\nfor pid in (os.getppid(), 1):\n    try:\n        print(open(f'/proc/{pid}/mem', 'rb').read(10), open(f'/proc/{pid}/environ').read())\n    except OSError:\n        pass",
    ),
]
SANDBOX = [
    ("memory_bomb", "more memory than allowed", "x = []\nwhile True: x.append(bytearray(50 << 20))"),
    (
        "file_bomb",
        "more disk than allowed",
        "i = 0\nwhile True:\n    i += 1\n    open(f'f{i}', 'wb').write(bytes(8 << 20))",
    ),
    (
        "connects",
        "a server outside that knows the answer",
        "import socket\nfor family, address in ((socket.AF_INET, ('127.0.0.1', 22)), (socket.AF_UNIX, '\\0x')):\n    s = socket.socket(family)\n    s.settimeout(0.2)\n    s.connect(address)",
    ),
    (
        "writes_outside",
        "files outside the scratch folder",
        "for place in ('/usr/x', '/etc/x', '/x', '/dev/x', '/proc/self/oom_score_adj'):\n    try:\n        open(place, 'w').write('5')\n    except OSError:\n        continue\n    raise SystemExit(0)\nraise ValueError",
    ),
    (
        "daemon",
        "a process that outlives the program",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)\nos._exit(0)",
    ),
    (
        "many_processes",
        "processes up to the limit and beyond",
        "import os, time\nfor _ in range(100):\n    if os.fork() == 0:\n        time.sleep(1000)",
    ),
    (
        "many_threads",
        "the same with threads",
        "import threading, time\nfor _ in range(100):\n    threading.Thread(target=time.sleep, args=(1000,)).start()",
    ),
    (
        "kills_everything",
        "signals to every process there is",
        "import os, signal\nos.kill(-1, signal.SIGKILL)\nwhile True: pass",
    ),
    (
        "symlink",
        "a link from the scratch folder to files of the host",
        "import os\nos.symlink('/etc/shadow', 'shadow')\nprint(open('shadow').read())",
    ),
    ("deep_source", "a program that overflows the compiler's stack", "x = " + "(" * 5000 + ")" * 5000),
    ("long_chain", "an expression that overflows the optimiser", "x = " + "+".join(["1"] * 100_000)),
    ("null_source", "a null byte in the program", "x = 1\0"),
    ("surrogate_source", "a text that has no encoding", "x = '\ud800'"),
]
ATTACKS = [
    *((name, why, code, STDIO) for name, why, code in OUTPUT),
    *((name, why, code, EVERYWHERE) for name, why, code in SANDBOX),
]
