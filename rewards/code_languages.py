"""The languages that stdio tests know: how a program becomes something to run, and whether this machine can."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rewards.code_bench import Bench, Kind, verdict_of
from rewards.code_extraction import Answer
from rlhf.errors import LoadError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Execution, Limits, Program

COMPILE_LIMITS = Limits(cpu_s=20.0, wall_s=80.0, memory_mb=2048, processes=64, disk_mb=256)
_BINARY = "a.out"
_MIN_OUTPUT_KB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """How programs of one language are made and run. `tools`: the commands of which one must be there."""

    source: str
    tools: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    is_compiled: bool = False
    cpu_factor: float = 1.0
    """Times the CPU seconds that a task states, which means them for compiled programs."""
    hello: str = ""


LANGUAGES: Mapping[str, Language] = {
    "python": Language(source="main.py", cpu_factor=3.0),
    "c": Language(
        source="main.c",
        tools=("gcc", "cc", "clang"),
        flags=("-O2", "-std=gnu17", "-w", "-o", _BINARY, "main.c", "-lm"),
        is_compiled=True,
        hello='#include <stdio.h>\nint main(void) { puts("hello"); }\n',
    ),
    "cpp": Language(
        source="main.cpp",
        tools=("g++", "c++", "clang++"),
        flags=("-O2", "-std=gnu++17", "-w", "-o", _BINARY, "main.cpp"),
        is_compiled=True,
        hello='#include <iostream>\nint main() { std::cout << "hello\\n"; }\n',
    ),
    "javascript": Language(
        source="main.js",
        tools=("node", "nodejs"),
        flags=(
            "--openssl-config=/dev/null",
        ),  # the system's is out of sight, and node will not start without
        cpu_factor=2.0,
        hello='console.log("hello")\n',
    ),
}


class CompileError(Exception):
    """The compiler refused a program, or met a limit on it."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    """A program ready to be run on any input."""

    language: str
    argv: tuple[str, ...] = ()
    code: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)

    def run(self, bench: Bench, stdin: str, *, expected: str = "") -> Execution:
        """Run it in a fresh process; its output may be somewhat longer than `expected`, whatever that is."""
        program = Program(
            argv=self.argv,
            code=self.code,
            stdin=stdin.encode(errors="surrogateescape"),
            files=self.files,
            limits_address_space=self.language != "javascript",
        )
        output_kb = max(_MIN_OUTPUT_KB, 2 * len(expected) >> 10)
        return bench.run(program, replace(bench.limits, output_kb=output_kb))


def compiled(bench: Bench, answer: Answer) -> Runnable:
    """The answer as something to run, compiled if its language is. CompileError when it does not compile."""
    language = LANGUAGES[answer.language]
    if not language.tools:
        return Runnable(language=answer.language, code=answer.source)
    tool, files = (
        _tool(language) or language.tools[0],
        {language.source: answer.source.encode(errors="replace")},
    )
    if not language.is_compiled:
        return Runnable(language=answer.language, argv=(tool, *language.flags, language.source), files=files)
    program = Program(argv=(tool, *language.flags), files=files, collect=(_BINARY,))
    execution = bench.run(program, COMPILE_LIMITS, is_test=False)
    if execution.status != "exited":
        verdict = verdict_of(execution)
        raise CompileError(verdict.kind, f"compiling: {verdict.message}")
    if execution.exit_code != 0 or _BINARY not in execution.files:
        raise CompileError("compile_error", _first_error(execution.stderr.decode(errors="replace")))
    return Runnable(
        language=answer.language, argv=(f"./{_BINARY}",), files={_BINARY: execution.files[_BINARY]}
    )


def _first_error(stderr: str) -> str:
    lines = stderr.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error" in line), lines[0])


def _tool(language: Language) -> str | None:
    return next((path for tool in language.tools if (path := shutil.which(tool))), None)


def require(languages: Sequence[str], sandbox: Sandbox) -> None:
    """Raise LoadError unless programs of all the languages can be run in the sandbox here."""
    for name in languages:
        if name not in LANGUAGES:
            raise LoadError(f"languages names {name!r}, expected some of {', '.join(LANGUAGES)}.")
        language = LANGUAGES[name]
        if not language.tools:
            continue
        if _tool(language) is None:
            raise LoadError(
                f"languages names {name!r}, but none of {', '.join(language.tools)} is on this machine's PATH. "
                "Install one on every machine that runs rewards, or leave the language out."
            )
        problem = _try(name, sandbox)
        if problem:
            raise LoadError(
                f"languages names {name!r}, but {_tool(language)} does not work inside the sandbox, which shows "
                f"programs the system's folders only: {problem}. Install it there, or leave the language out."
            )


def _try(name: str, sandbox: Sandbox) -> str:
    """Why a first program of the language fails, or nothing."""
    bench = Bench(sandbox=sandbox, cpu_s=10.0, total_cpu_s=60.0, memory_mb=1024)
    try:
        execution = compiled(bench, Answer(name, LANGUAGES[name].hello)).run(bench, "")
    except (CompileError, RuntimeError) as error:
        return str(error)
    if execution.succeeded and execution.stdout == b"hello\n":
        return ""
    return f"{execution.status} {execution.detail} {execution.stderr[-300:].decode(errors='replace')}".strip()
