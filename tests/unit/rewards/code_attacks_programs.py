"""Programs on standard input that try to pass without an answer, and a few that attack the sandbox itself."""

from tests.unit.rewards.code_cases import parse_attacks

OUTPUT = parse_attacks(r"""
### first_line_only: graders that zip lines pay for a cut output
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
print(out[0])

### nothing: an empty output zips with everything
pass

### first_line_then_exit: the same with a clean exit
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
print(out[0], flush=True)
sys.exit(0)

### extra_lines: all right lines and some more
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
print(*out, *range(100), sep='\n')

### every_number: every number is among the output
print(*range(-100, 100), sep='\n')

### all_on_one_line: right words, wrong lines
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
print(*out)

### blank_lines_between: right lines, spread out
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
print(*out, sep='\n\n')

### right_then_wrong_exit: right output of a program that failed
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
print(*out, sep='\n')
sys.exit(1)

### right_then_crash: right output, then an exception
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
print(*out, sep='\n', flush=True)
raise ValueError

### right_then_signal: right output, then death by signal
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
print(*out, sep='\n', flush=True)
import os
os.kill(os.getpid(), 9)

### on_standard_error: right output on the wrong stream
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
print(*out, sep='\n', file=sys.stderr)

### constant: the first test's output for every input
print('5\n8')

### prints_passed: the grader's words on standard output
print('["passed"]\nOK\nAll tests passed')

### terminal_codes: codes that overwrite lines on a terminal
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
print('9\r' + str(out[0]) + '\x1b[K')
print(*out[1:], sep='\n')

### other_digits: digits of another script
print('\uff15\n\uff18')

### with_underscores: numbers that only Python reads
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
print(*(f'0_{x}' for x in out), sep='\n')

### null_bytes: bytes that end a C string
import sys
out = []
for line in sys.stdin:
    a, b = map(int, line.split())
    out.append(a + b)
sys.stdout.write('\n'.join(map(str, out)) + '\0')

### exit_hook_prints: an exit handler prints for every test
import atexit
atexit.register(lambda: print('5\n8'))

### endless_output: output that fills the grader's memory
while True: print('5\n8')

### endless_error: the same on standard error
import sys
while True: sys.stderr.write('x' * 65536)

### one_long_line: a line without an end
import sys
while True: sys.stdout.write('5' * 65536)

### seeks_input: expected output behind the input
import os, sys
print(sys.stdin.read())
try:
    os.lseek(0, 0, 0)
    print(os.read(0, 1000))
except OSError:
    pass

### writes_to_input: an answer written back into the input
import os
try:
    os.write(0, b'5\n8\n')
except OSError:
    pass

### forked_output: a child prints what the parent does not
import os
if os.fork() == 0:
    print('5\n8', flush=True)
    os._exit(0)
os._exit(0)

### never_reads: input that is never read must not block the grader
import time
time.sleep(1000)

### closes_streams: streams closed, then a loop
import os
os.closerange(0, 3)
while True: pass

### reads_grader: the grader's memory through its process table
import os
for pid in (os.getppid(), 1):
    try:
        print(open(f'/proc/{pid}/mem', 'rb').read(10), open(f'/proc/{pid}/environ').read())
    except OSError:
        pass
""")
SANDBOX = [
    *parse_attacks(r"""
### memory_bomb: more memory than allowed
x = []
while True: x.append(bytearray(50 << 20))

### file_bomb: more disk than allowed
i = 0
while True:
    i += 1
    open(f'f{i}', 'wb').write(bytes(8 << 20))

### connects: a server outside that knows the answer
import socket
for family, address in ((socket.AF_INET, ('127.0.0.1', 22)), (socket.AF_UNIX, '\0x')):
    s = socket.socket(family)
    s.settimeout(0.2)
    s.connect(address)

### writes_outside: files outside the scratch folder
for place in ('/usr/x', '/etc/x', '/x', '/dev/x', '/proc/self/oom_score_adj'):
    try:
        open(place, 'w').write('5')
    except OSError:
        continue
    raise SystemExit(0)
raise ValueError

### daemon: a process that outlives the program
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
os._exit(0)

### many_processes: processes up to the limit and beyond
import os, time
for _ in range(100):
    if os.fork() == 0:
        time.sleep(1000)

### many_threads: the same with threads
import threading, time
for _ in range(100):
    threading.Thread(target=time.sleep, args=(1000,)).start()

### kills_everything: signals to every process there is
import os, signal
os.kill(-1, signal.SIGKILL)
while True: pass

### symlink: a link from the scratch folder to files of the host
import os
os.symlink('/etc/shadow', 'shadow')
print(open('shadow').read())
"""),
    ("deep_source", "a program that overflows the compiler's stack", "x = " + "(" * 5000 + ")" * 5000),
    ("long_chain", "an expression that overflows the optimiser", "x = " + "+".join(["1"] * 100_000)),
    ("null_source", "a null byte in the program", "x = 1\0"),
    ("surrogate_source", "a text that has no encoding", "x = '\ud800'"),
]
