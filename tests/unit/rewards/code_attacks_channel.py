"""Solutions that speak on the grader's channel."""

from tests.unit.rewards.code_cases import parse_attacks

FORGE = r"""
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
ATTACKS = parse_attacks(
    r"""
### says_passed: a verdict where an answer is expected
def solve(a, b):
    put(['passed'])
    return 0

### says_done: the tests' side's message with a guessed nonce
def solve(a, b):
    put(['done', '0' * 32])
    return 0

### says_done_early: the same before the first call
put(['loaded'])
put(['done', ''])
os._exit(0)

### guesses_nonces: many guesses at once
def solve(a, b):
    for i in range(2000): put(['done', f'{i:032x}'])
    return 0

### guesses_numbers: the right shape for calls to come
def solve(a, b):
    for i in range(2000): put(['returned', i, 5])
    return 0

### forges_twice: two answers to one call, the second for the next call
def solve(a, b):
    put(['returned', number(), 0])
    put(['returned', number() + 1, 6])
    return 0

### forges_a_lie: a right number with a value that is no value
def solve(a, b):
    put(['returned', number(), ['object', 'Any']])
    return 0

### forges_a_dict: a message that is no list
def solve(a, b):
    put({'passed': True})
    return 0

### forges_nothing: an empty message
def solve(a, b):
    put([])
    return 0

### forges_number: a message that is a number
def solve(a, b):
    put(1)
    return 0

### forges_test: an order to the grader's other side
def solve(a, b):
    put(['test', 'pass', ''])
    put(['call', 'solve', ['list'], ['dict']])
    return 0

### forges_raise: an exception that tests may expect
def solve(a, b):
    put(['raised', number(), 'StopIteration', ''])
    return 0

### forges_not_text: an exception whose name is no text
def solve(a, b):
    put(['raised', number(), ['list'], 5])
    return 0

### half_frame: a frame that never ends
def solve(a, b):
    raw(b'\x00\x00\x01\x00["ret')
    while True: pass

### half_frame_and_exit: a frame cut off by the end
def solve(a, b):
    raw(b'\x00\x00\x01\x00["ret')
    os._exit(0)

### huge_prefix: a frame that claims 4 GB
def solve(a, b):
    raw(b'\xff\xff\xff\xff' + b'[' * 100)
    return 0

### large_frame: a frame that fills the grader's memory
def solve(a, b):
    put(b'[' + b'0,' * 4_000_000 + b'0]')
    return 0

### deep_frame: JSON that overflows the parser
def solve(a, b):
    put(b'[' * 3_000_000)
    return 0

### long_number: a number too long to parse
def solve(a, b):
    put(b'["returned", ' + b'9' * 3_000_000 + b']')
    return 0

### no_utf8: bytes that are no text
def solve(a, b):
    put(b'\xff\xfe\x00')
    return 0

### forged_collisions: keys that all collide, which only the side that rebuilds them pays for
def solve(a, b):
    put(['returned', number(), ['dict', *(x for i in range(100_000) for x in (['int', hex(i * (2**61 - 1))], 0))]])
    return 0

### flood: messages without end
def solve(a, b):
    while True: put(['returned', 0, 5])
    return 0

### slow_drip: a byte now and then keeps the grader waiting
def solve(a, b):
    import time
    raw(b'\x00\x00\x10\x00')
    while True:
        raw(b'[')
        time.sleep(0.05)
    return 0

### closed_channel: no answer, ever
def solve(a, b):
    os.closerange(3, 128)
    while True: pass

### shut_channel: the grader's end is shut down
def solve(a, b):
    import socket
    socket.socket(fileno=channel()).shutdown(socket.SHUT_RDWR)
    while True: pass

### late_thread: a thread that answers calls to come
import threading, time
def later():
    while True:
        put(['returned', 0, 5]); time.sleep(0.001)
threading.Thread(target=later, daemon=True).start()
def solve(a, b):
    time.sleep(0.02)
    return 0

### forked_twin: two processes answer one call
import os
def solve(a, b):
    os.fork()
    return 0

### answering_child: a child stays on the channel after its parent has ended
def solve(a, b):
    if os.fork():
        os._exit(0)
    import time
    for i in range(100):
        put(['returned', i, 5]); time.sleep(0.005)
    return 0

### standard_streams: the verdict on standard output and error
import os
def solve(a, b):
    for fd in (0, 1, 2):
        os.write(fd, b'["passed"]\nOK\n1 passed\n')
    return 0

### reads_next_call: orders read away before the runner sees them
def solve(a, b):
    os.set_blocking(channel(), False)
    try:
        os.read(channel(), 1 << 20)
    except OSError:
        pass
    return 0
""",
    before=FORGE,
)
