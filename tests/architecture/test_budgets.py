"""Size and shape of the source: what a reader can hold in mind."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = sorted(path for package in ("rlhf", "rewards", "envs") for path in (ROOT / package).rglob("*.py"))
ENGINE = [path for path in SOURCE if path.is_relative_to(ROOT / "rlhf")]
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_INHERITANCE = 400, 60, 2
FORBIDDEN_NAMES = {"utils", "util", "common", "misc", "base", "helpers"}
FORBIDDEN_SUFFIXES = ("Manager", "Helper", "Handler", "Utils")
FunctionNode = (ast.FunctionDef, ast.AsyncFunctionDef)

per_file = pytest.mark.parametrize("path", SOURCE, ids=lambda path: str(path.relative_to(ROOT)))
per_engine_file = pytest.mark.parametrize("path", ENGINE, ids=lambda path: str(path.relative_to(ROOT)))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path",
    sorted(
        p
        for folder in ("rlhf", "rewards", "envs", "tests", "benchmarks")
        for p in (ROOT / folder).rglob("*.py")
    ),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_file_fits_its_budget(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES


@per_file
def test_functions_fit_their_budget(path):
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree(path))
        if isinstance(node, FunctionNode) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert not long


@per_file
def test_no_module_or_class_has_a_name_that_says_nothing(path):
    assert path.stem not in FORBIDDEN_NAMES
    assert path.parent.name not in FORBIDDEN_NAMES
    vague = [
        n.name
        for n in ast.walk(tree(path))
        if isinstance(n, ast.ClassDef) and n.name.endswith(FORBIDDEN_SUFFIXES)
    ]
    assert not vague


@per_engine_file
def test_everything_public_has_a_docstring(path):
    bare = [name for name, node in public_definitions(tree(path)) if ast.get_docstring(node) is None]
    assert not bare


@per_engine_file
def test_no_file_prints(path):
    calls = [
        n.lineno for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"
    ]
    assert not calls


def test_inheritance_is_shallow():
    bases = {
        node.name: [ast.unparse(base).rpartition(".")[2] for base in node.bases]
        for path in SOURCE
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
    }

    def depth(name: str) -> int:
        return 1 + max((depth(base) for base in bases[name] if base in bases), default=0)

    assert not {name: depth(name) for name in bases if depth(name) > MAX_INHERITANCE}


def public_definitions(module: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Top-level functions and classes, and the methods of those classes, without a leading underscore."""
    for node in module.body:
        if not isinstance(node, (*FunctionNode, ast.ClassDef)) or node.name.startswith("_"):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if isinstance(m, FunctionNode) and not m.name.startswith("_")]
            yield from ((f"{node.name}.{method.name}", method) for method in methods)
