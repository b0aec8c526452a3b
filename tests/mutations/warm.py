"""Runs pytest many times in the folder it is started in, each run a fork of a process that has torch loaded.

A script, not a module: nothing of the checkout is imported before the fork. Each line of stdin is a JSON list of
pytest arguments; the answer, a JSON line, is [exit code, output, seconds]. Past the deadline the code is 124.
"""

import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time

SLOW_TO_IMPORT = (
    "torch.testing",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "tokenizers",
    "pytest",
    "hypothesis.strategies",
    "jaxtyping",
    "beartype",
)
DEADLINE_S = 300.0


def answer(arguments: list[str]) -> tuple[int, str, float]:
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os._exit(run(arguments))
        code = wait(child)
        output.seek(0)
        return code, output.read().decode(errors="replace"), time.monotonic() - started


def run(arguments: list[str]) -> int:
    import pytest

    code = int(pytest.main(arguments))
    sys.stdout.flush()
    return code


def wait(child: int) -> int:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


if __name__ == "__main__":
    # No bytecode: a file changed twice in a second, to the same length, would run as it was before.
    sys.dont_write_bytecode = True
    sys.path[0] = os.getcwd()
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)
    gc.freeze()  # pytest collects garbage harder than these imports allow to be quick
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        replies.write(json.dumps(answer(json.loads(line))) + "\n")
        replies.flush()
    os._exit(0)  # without the interpreter's farewell: some of those modules complain at exit
