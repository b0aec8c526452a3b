"""What runs hidden tests, inside a sandbox of its own: pytest over the files that the model left.

Its text is sent there: standard library and pytest only. The model's code and the tests share this process, as they do
wherever pytest grades a repository, so what is reported is checked from outside: the nonce, which printed text cannot
know, and tests that must fail (controls), which whatever makes every test pass makes pass as well.
"""

import ast
import contextlib
import functools
import importlib
import io
import json
import operator
import os
import random
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_CHANNEL = 3
_EQUAL = ("assertEqual", "assertListEqual", "assertTupleEqual", "assertDictEqual", "assertSetEqual")
_OTHER_TYPES = (type(object.__eq__), type(str.lower))
"""Of methods written in C."""
_PRELOADED = (
    "collections",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "pathlib",
    "unittest.mock",
    "uuid",
)
_OPERATORS = {"Lt": operator.lt, "LtE": operator.le, "Gt": operator.gt, "GtE": operator.ge}
_CONTROLS = """

def test_{name}_bare():
    assert {left} == {right}

def test_{name}_same():
    assert __import__({judge!r}).same({left}, {right})

def test_{name}_raises():
    import pytest
    with pytest.raises(ArithmeticError):
        pass

class Test{name}(__import__("unittest").TestCase):
    def test_equal(self):
        self.assertEqual({left}, {right})

    def test_true(self):
        self.assertTrue({left} is None)

    def test_raises(self):
        with self.assertRaises(ArithmeticError):
            pass
"""


class Judge:
    """Comparisons in which a class of the model's has no say about values that are not its own.

    An equality written in Python by a class that came with the repository is asked only about objects of that very
    class. (`return Equal()`, whose `__eq__` says yes to everything, is no 5.)
    """

    def __init__(self) -> None:
        self._known = {id(method): method for method in _python_methods()}

    def same(self, left: Any, right: Any) -> bool:
        """Left == right."""
        if self._are(left, right, list) or self._are(left, right, tuple):
            return len(left) == len(right) and all(map(self.same, left, right))
        if self._are(left, right, dict):
            keys = list(dict.items(left))
            return len(left) == len(right) and all(
                self.contains(dict.keys(right), key) and self.same(value, dict.__getitem__(right, key))
                for key, value in keys
            )
        if self._are(left, right, set) or self._are(left, right, frozenset):
            return len(left) == len(right) and all(self.contains(right, member) for member in left)
        return self._may_compare(left, right, "__eq__") and bool(left == right)

    def contains(self, container: Any, member: Any) -> bool:
        """Member in container."""
        if type(container) in (list, tuple):
            return any(self.same(member, other) for other in container)
        if isinstance(container, (set, frozenset, type({}.keys()))):
            # A hash table asks members of one hash whether they are equal.
            return all(map(self._is_plain, (member, *container))) and member in container
        return bool(member in container)

    def ordered(self, left: Any, right: Any, name: str) -> Any:
        """The comparison of that name."""
        method = f"__{_OPERATORS[name].__name__}__"
        return self._may_compare(left, right, method) and _OPERATORS[name](left, right)

    def _are(self, left: Any, right: Any, kind: type) -> bool:
        return all(
            issubclass(type(side), kind) and self._is_known(type(side), "__eq__") for side in (left, right)
        )

    def _is_plain(self, value: Any) -> bool:
        if isinstance(value, (tuple, frozenset)):
            return self._is_known(type(value), "__eq__") and all(map(self._is_plain, value))
        return self._is_known(type(value), "__eq__")

    def _may_compare(self, left: Any, right: Any, method: str) -> bool:
        sides = (type(left), type(right))
        return sides[0] is sides[1] or all(self._is_known(side, method) for side in sides)

    def _is_known(self, kind: type, name: str) -> bool:
        method = next((vars(owner)[name] for owner in type.mro(kind) if name in vars(owner)), None)
        return method is None or type(method) in _OTHER_TYPES or id(method) in self._known


class _Rewriting(ast.NodeTransformer):
    """Has the judge compare what a test compares."""

    def __init__(self, judge: str) -> None:
        self._judge = judge

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) > 1:
            return node
        left, right, name = node.left, node.comparators[0], type(node.ops[0]).__name__
        if name in ("Eq", "NotEq"):
            found = self._asked("same", left, right)
        elif name in ("In", "NotIn"):
            found = self._asked("contains", right, left)
        elif name in _OPERATORS:
            return self._asked("ordered", left, right, ast.Constant(name))
        else:
            return node
        return found if name in ("Eq", "In") else ast.UnaryOp(ast.Not(), found)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        function = node.func
        if not isinstance(function, ast.Attribute) or len(node.args) < 2:
            return node
        if function.attr in (*_EQUAL, "assertNotEqual"):
            wanted = ast.Constant(function.attr != "assertNotEqual")
            node.args = [self._asked("same", *node.args[:2]), wanted, *node.args[2:]]
            function.attr = "assertIs"
        return node

    def _asked(self, method: str, *arguments: ast.expr) -> ast.expr:
        module = ast.Call(ast.Name("__import__", ast.Load()), [ast.Constant(self._judge)], [])
        return ast.Call(ast.Attribute(module, method, ast.Load()), list(arguments), [])


class Record:
    """A plugin that keeps what became of the wanted tests and the controls."""

    def __init__(self, wanted: Iterable[str] | None, control: str) -> None:
        self._wanted = None if wanted is None else set(wanted)
        self._control = control
        self.results: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out what nobody asked for."""
        wanted = self._wanted
        items[:] = [i for i in items if wanted is None or i.nodeid in wanted or self._control in i.nodeid]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Passed: in all of setup, call and teardown."""
        if report.outcome != "passed":
            self.results[report.nodeid] = str(report.outcome)
        elif report.when == "call":
            self.results.setdefault(report.nodeid, "passed")


def _python_methods() -> list[Any]:
    """Every comparison written in Python, of all classes there are."""
    names = ("__eq__", "__lt__", "__le__", "__gt__", "__ge__")
    seen: set[type] = set()
    left: list[type] = [object]
    while left:
        children: list[type] = type.__subclasses__(left.pop())
        for child in children:
            if child not in seen:
                seen.add(child)
                left.append(child)
    return [method for kind in seen for name in names if (method := vars(kind).get(name)) is not None]


def _prepare(files: Sequence[str], judge: str, control: str, *, is_strict: bool) -> None:
    """Rewrite the hidden tests in place if that is asked for, and add controls to each."""
    for number, file in enumerate(files):
        with open(file, encoding="utf-8") as opened:
            source = opened.read()
        if is_strict:
            with contextlib.suppress(SyntaxError, ValueError):
                source = ast.unparse(ast.fix_missing_locations(_Rewriting(judge).visit(ast.parse(source))))
        left, right = random.SystemRandom().sample(range(10, 10**6), 2)
        name = f"{control}{number}"
        source += _CONTROLS.format(name=name, judge=judge, left=left, right=right)
        with open(file, "w", encoding="utf-8") as opened:
            opened.write(source)


def _preload(files: Sequence[str], folder: str) -> None:
    """Import what the tests use and the repository does not hold: known, then, before the model's code runs."""
    names = set(_PRELOADED)
    for file in files:
        with contextlib.suppress(SyntaxError, ValueError, OSError), open(file, encoding="utf-8") as opened:
            for node in ast.walk(ast.parse(opened.read())):
                if isinstance(node, ast.Import):
                    names.update(alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module)
    held = {name.partition(".")[0] for path in (folder, f"{folder}/src") for name in _listed(path)}
    for name in names:
        if name.partition(".")[0] in held:
            continue
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _listed(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _read_line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(descriptor, 65536)
        if not more:
            os._exit(1)
        line += more
    return line


def _send(descriptor: int, message: dict[str, Any]) -> None:
    left = memoryview(json.dumps(message).encode() + b"\n")
    while left:
        left = left[os.write(descriptor, left) :]


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.stdout, sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb")), io.TextIOWrapper(os.fdopen(2, "wb"))


def main() -> None:
    """Run what is asked for on the channel, and answer there."""
    channel = os.dup(_CHANNEL)
    os.close(_CHANNEL)
    request = json.loads(_read_line(channel))
    send: Callable[[dict[str, Any]], None] = functools.partial(_send, channel)
    _silence()
    nonce, files, control = request["nonce"], request["files"], request["control"]
    sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]
    try:
        import pytest
    except ImportError as error:
        send({"nonce": nonce, "problem": f"pytest cannot be imported in the sandbox: {error}"})
        os._exit(1)
    _preload(files, request["folder"])
    judge = Judge()
    module = types.ModuleType(request["judge"])
    vars(module).update(same=judge.same, contains=judge.contains, ordered=judge.ordered)
    sys.modules[request["judge"]] = module
    _prepare(files, request["judge"], control, is_strict=request["strict"])
    send({"nonce": nonce, "ready": True})
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.chdir(request["folder"])
    sys.path[:0] = [path for path in (os.getcwd(), os.path.abspath("src")) if os.path.isdir(path)]
    record = Record(request["wanted"], control)
    plugins = [part for name in request["plugins"] for part in ("-p", name)]
    names = [os.path.relpath(file, request["folder"]) for file in files]
    options = ["-q", "-p", "no:cacheprovider", "--rootdir=.", "-o", "addopts=", "--tb=no", *plugins]
    pytest.main([*options, *names], plugins=[record])
    send({"nonce": nonce, "results": record.results})
    os._exit(0)


if __name__ == "__main__":
    main()
