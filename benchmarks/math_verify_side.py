"""Math-Verify as its documentation uses it, in a process that can be killed when it does not come back."""

import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from typing import Self

DEADLINE_S = 12.0
"""Past its own two limits of 5 s."""
MEMORY_BYTES = 4 << 30


class MathVerify:
    """`verify(parse(gold), parse(completion))` with default settings, one question at a time."""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def grade(self, completion: str, gold: str) -> tuple[bool, float]:
        """Its verdict and the seconds it took, without the way there and back; False at the deadline."""
        self._pipe.send((completion, gold))
        if self._pipe.poll(DEADLINE_S):
            try:
                answer: tuple[bool, float] = self._pipe.recv()
                return answer
            except EOFError:
                pass
        self._kill()
        self._start()
        return False, DEADLINE_S

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection) -> None:
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    verify(parse("$x+1$"), parse("$1+x$"))
    pipe.send("ready")
    while True:
        try:
            completion, gold = pipe.recv()
        except EOFError:
            return
        started = time.perf_counter()
        try:
            is_paid = verify(parse(f"${gold}$"), parse(completion))
        except Exception:  # noqa: BLE001
            is_paid = False
        pipe.send((is_paid, time.perf_counter() - started))
