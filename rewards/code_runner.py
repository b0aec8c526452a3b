"""What runs inside a sandbox: the solution's side, which holds model code, and the tests' side, which holds none.

Its text is sent there with that of `rewards.code_wire`: standard library only. The grader speaks first on the
channel, one message at a time. Nothing the solution's side sends is believed: it is data to be compared.
"""

import builtins
import io
import os
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

from rewards.code_wire import WireError, decode, encode, frame, receive

_CHANNEL = 3
_MESSAGE_CHARACTERS = 300


class SolutionError(Exception):
    """The solution raised something that is no built-in exception."""


class Channel:
    """The private copy of the channel: model code that closes or uses descriptor 3 harms only itself."""

    def __init__(self) -> None:
        self._descriptor = os.dup(_CHANNEL)
        os.close(_CHANNEL)
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            os.close(null)
        except OSError:
            sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()

    def read(self) -> list[Any]:
        """The next message."""
        return receive(lambda size: os.read(self._descriptor, size))

    def write(self, message: list[Any]) -> None:
        """Send a message."""
        left = memoryview(frame(message))
        while left:
            left = left[os.write(self._descriptor, left) :]


class Process:
    """One side. `role`: solution, tests, or both in one process (weak)."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._channel = Channel()
        self._module = types.ModuleType("tests" if role == "tests" else "solution")
        self._object: Any = None
        sys.modules[self._module.__name__] = self._module

    def serve(self) -> NoReturn:
        """Answer the grader until it closes the channel."""
        answers: dict[str, Callable[..., list[Any]]]
        answers = {"load": self._load, "call": self._call, "test": self._test}
        while True:
            try:
                name, *parts = self._channel.read()
            except EOFError:
                os._exit(0)
            self._channel.write(answers[name](*parts))

    def _load(self, setup: str, source: str, names: list[str]) -> list[Any]:
        """Execute setup and, where model code belongs, the solution; ["loaded"] or ["failed", kind, message]."""
        namespace = vars(self._module)
        try:
            exec(compile(setup, "setup.py", "exec", dont_inherit=True), namespace)
        except BaseException as error:  # noqa: BLE001
            return ["failed", "setup", _describe(error)]
        if self._role == "tests":
            namespace |= {name: self._proxy(name) for name in names}
            return ["loaded"]
        for name in names:
            # What setup happens to define (a star import of `operator` defines `add`) is no solution.
            namespace.pop(name, None)
        try:
            code = compile(source, "solution.py", "exec", dont_inherit=True)
        except BaseException as error:  # noqa: BLE001
            return ["failed", "compile_error", _describe(error)]
        try:
            exec(code, namespace)
        except BaseException as error:  # noqa: BLE001
            kind = "import_error" if isinstance(error, ImportError) else "exception"
            return ["failed", kind, _describe(error)]
        return ["loaded"]

    def _call(self, number: int, name: str, arguments: Any, keywords: Any) -> list[Any]:
        """["returned", number, value], ["raised", number, type, message] or ["unsendable", number, what]."""
        try:
            value = self._find(name)(*decode(arguments), **decode(keywords))
            return ["returned", number, encode(value)]
        except WireError as error:
            return ["unsendable", number, _describe(error)]
        except BaseException as error:  # noqa: BLE001
            return ["raised", number, type(error).__name__, _text(error)]

    def _find(self, name: str) -> Callable[..., Any]:
        """The method of `class Solution`, one object a process, else the function of the solution's own module."""
        namespace = vars(self._module)
        solution = namespace.get("Solution")
        if isinstance(solution, type) and hasattr(solution, name):
            self._object = solution() if self._object is None else self._object
            return getattr(self._object, name)  # type: ignore[no-any-return]
        if name not in namespace:
            raise NameError(f"the solution does not define {name}")
        return namespace[name]  # type: ignore[no-any-return]

    def _proxy(self, name: str) -> Callable[..., Any]:
        """A function that is called here and runs in the solution's sandbox."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            self._channel.write(["call", name, encode(list(arguments)), encode(keywords)])
            verdict, *parts = self._channel.read()
            if verdict == "returned":
                return decode(parts[0])
            raise _exception(*parts)

        call.__name__ = call.__qualname__ = name
        return call

    def _test(self, source: str, nonce: str) -> list[Any]:
        """["done", nonce] when the test reaches its end, else ["failed", type, message]."""
        try:
            exec(compile(source, "tests.py", "exec", dont_inherit=True), vars(self._module))
        except BaseException as error:  # noqa: BLE001
            return ["failed", type(error).__name__, _describe(error)]
        return ["done", nonce]


def _exception(kind: str, message: str) -> Exception:
    """The built-in exception of that name, so that tests which expect one see it."""
    found = vars(builtins).get(kind)
    if isinstance(found, type) and issubclass(found, Exception):
        try:
            return found(message)
        except TypeError:
            pass
    return SolutionError(f"{kind}: {message}")


def _describe(error: BaseException) -> str:
    named = isinstance(error, WireError)
    return (_text(error) if named else f"{type(error).__name__}: {_text(error)}")[:_MESSAGE_CHARACTERS]


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_MESSAGE_CHARACTERS]
    except BaseException:  # noqa: BLE001
        return "its text could not be read"
