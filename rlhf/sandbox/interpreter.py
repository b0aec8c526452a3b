"""Runs Python text as `__main__` in a forked interpreter, as if it had been started for it."""

import atexit
import builtins
import gc
import io
import linecache
import os
import random
import signal
import sys
import threading
import traceback
import types
from typing import NoReturn

PRELOADED = """
abc array bisect cmath collections collections.abc contextlib copy dataclasses datetime enum fractions functools heapq
io itertools json math numbers operator queue random re string struct textwrap time typing
"""
"""Imported once by the launcher, so that no program has to; separated by white space."""
NAME = "main.py"


def run(code: str, *, packages: str) -> NoReturn:
    """Execute `code`, then end this process as a fresh interpreter would: exit code, traceback, atexit, flush."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "rlhf"]:
        del sys.modules[name]
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__=NAME)
    sys.modules["__main__"] = main
    sys.argv = [NAME]
    _fresh_streams()
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _add_site_names(packages)
    gc.enable()
    # The same for every job: verdicts must not depend on a draw that nobody asked for.
    random.seed(0)
    lines = code.splitlines(keepends=True)
    linecache.cache[NAME] = (len(code), None, lines, NAME)
    os._exit(_finish(_execute(code, main)))


def _execute(code: str, main: types.ModuleType) -> int:
    try:
        exec(compile(code, NAME, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as error:
        return _exit_code(error)
    except BaseException as error:  # noqa: BLE001
        # Without our own two frames.
        trace = error.__traceback__
        shown = trace.tb_next if trace is not None and not isinstance(error, SyntaxError) else None
        traceback.print_exception(type(error), error, shown)
        return 1
    return 0


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    sys.stderr.write(f"{error.code}\n")
    return 1


def _finish(code: int) -> int:
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: BLE001
            code = code or 120
    return code


def _fresh_streams() -> None:
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        raw = open(number, mode + "b", buffering=-1, closefd=False)  # noqa: SIM115
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        stream = io.TextIOWrapper(
            raw, encoding="utf-8", errors=errors, line_buffering=name == "stderr", write_through=False
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _add_site_names(packages: str) -> None:
    """What `site` adds to an interpreter: exit, quit, help; and the installed packages."""
    import _sitebuiltins

    for name in ("quit", "exit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    builtins.help = _sitebuiltins._Helper()
    known = [path for path in sys.path if path not in ("", packages)]
    sys.path = ["", *known, *([packages] if packages else [])]
