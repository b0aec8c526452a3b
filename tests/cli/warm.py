"""Runs `rlhf` commands, each in a fork of a process that has loaded what every command loads.

A script: each line of stdin is a JSON list [arguments, input]; the answer, a JSON line, is [exit code, stdout, stderr].
"""

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
import traceback

DEADLINE_S = 300.0


def answer(arguments: list[str], typed: str) -> tuple[int, str, str]:
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(typed.encode())
        given.seek(0)
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(given.fileno(), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(run(arguments))
        code = wait(child)
        return code, text(out), text(err)


def run(arguments: list[str]) -> int:
    from rlhf.cli import main

    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def text(file) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


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
    import rlhf.cli

    # Everything that a plan needs is loaded by making one.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        rlhf.cli.main(["train", "recipes/cpu/quickstart.yaml", "--dry-run"])
    for line in sys.stdin:
        reply = json.dumps(answer(*json.loads(line)))
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()
