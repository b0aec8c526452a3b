"""Programs as people and agents write them; each prints `works` last. They must run wherever files are isolated."""

PYTHON = {
    "threads": """
import threading, queue
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool: assert sum(pool.map(abs, range(-10, 1))) == 55
q = queue.Queue()
threading.Thread(target=q.put, args=("works",)).start()
print(q.get(timeout=60))""",
    "subprocess": """
import subprocess, sys
assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
assert subprocess.check_output("echo a | tr a b", shell=True) == b"b\\n"
print(subprocess.check_output([sys.executable, "-c", "print('works')"], text=True).strip())""",
    "ended child": """
import subprocess
p = subprocess.Popen(["sleep", "100"])
p.terminate()
assert p.wait() == -15
try: subprocess.run(["sleep", "100"], timeout=0.05)
except subprocess.TimeoutExpired: print("works")""",
    "asyncio": """
import asyncio
async def main():
    child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    out, _ = await child.communicate(b"works")
    await asyncio.gather(*(asyncio.sleep(0.01) for _ in range(10)))
    return (await asyncio.to_thread(out.decode))
print(asyncio.run(main()))""",
    "multiprocessing": """
import multiprocessing
def double(x): return 2 * x
a, b = multiprocessing.Pipe()
process = multiprocessing.get_context("fork").Process(target=lambda: b.send(double(21)))
process.start()
assert a.recv() == 42
process.join()
assert process.exitcode == 0
print("works")""",
    "pool of processes": """
import multiprocessing
def double(x): return 2 * x
with multiprocessing.get_context("fork").Pool(2) as pool: assert pool.map(double, [1, 2, 3]) == [2, 4, 6]
print("works")""",
    "tempfile": """
import os, shutil, tempfile
with tempfile.TemporaryDirectory() as folder:
    open(os.path.join(folder, "a"), "w").write("x")
    shutil.copy(os.path.join(folder, "a"), "b")
with tempfile.NamedTemporaryFile() as file: file.write(b"x")
os.makedirs("c/d")
shutil.move("b", "c/d/e")
shutil.copytree("c", "f")
assert open("f/d/e").read() == "x"
shutil.rmtree("f")
shutil.rmtree("c")
assert os.listdir(".") == []
print("works")""",
    "memory map": """
import mmap, os
open("map", "wb").truncate(1 << 20)
m = mmap.mmap(os.open("map", os.O_RDWR), 1 << 20)
m[:5] = open("map", "rb").read(5)
m = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m[:5] = b"works"
print(m[:5].decode())""",
    "sqlite": """
import sqlite3
with sqlite3.connect("x.db") as db:
    db.execute("create table t(a)")
    db.execute("insert into t values ('works')")
    print(db.execute("select a from t").fetchone()[0])""",
    "signals": """
import os, signal, time
def late(*_): raise TimeoutError
signal.signal(signal.SIGALRM, late)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    time.sleep(600)
except TimeoutError: print("works")""",
    "recursion": """
import sys
sys.setrecursionlimit(20000)
def depth(n): return n and 1 + depth(n - 1)
assert depth(15000) == 15000
print("works")""",
    "own limits": """
import os, resource, time
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.nice(1)
assert os.sched_getaffinity(0)
assert os.getpid() and os.path.exists("/dev/null") and time.localtime().tm_year > 2000
print("works")""",
}
NUMPY = """
import numpy
a = numpy.arange(9.0).reshape(3, 3)
assert (a @ numpy.linalg.inv(a + numpy.eye(3))).shape == (3, 3)
print("works")"""
SHELL = {
    "script": "printf '#!/bin/sh\\necho works\\n' > s && chmod +x s && ./s",
    "files": "mkdir d && touch d/f && cp d/f d/g && mv d/g h && ls -l h d/f >/dev/null && rm -r d h && echo works",
}
C = '#include <stdio.h>\nint main(void) { puts("works"); return 0; }\n'
COMPILED = "gcc -O1 -o prog main.c && ./prog"
NODE = "const {execSync} = require('child_process'); console.log(execSync('echo works').toString().trim())"
