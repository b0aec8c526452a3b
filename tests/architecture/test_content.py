"""Rewards and environments never turn text into code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IN_THE_SANDBOX = {"code_runner.py", "hidden_tests_runner.py"}
"""Loaded as text and run only there."""
CONTENT = [
    path
    for package in ("rewards", "envs")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name not in IN_THE_SANDBOX
]
BUILTINS = {"eval", "exec", "compile", "__import__", "globals"}
ATTRIBUTES = {"parse_expr", "sympify", "lambdify", "S", "literal_eval", "system", "popen"}
PICKLES = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}


@pytest.mark.parametrize("path", CONTENT, ids=lambda path: path.name)
def test_content_calls_nothing_that_runs_text(path):
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    methods = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    looked_up = {"getattr"} if path.name.startswith("math_") else set()
    assert not names & (BUILTINS | ATTRIBUTES | looked_up)
    assert not methods & ATTRIBUTES


@pytest.mark.parametrize("path", CONTENT, ids=lambda path: path.name)
def test_content_imports_no_string_parser_and_no_pickle(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import) and path.name != "code_readers.py":
            assert not {alias.name.split(".")[0] for alias in node.names} & PICKLES
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in PICKLES:
            # A reader that takes nothing but text out of one.
            assert node.attr in ("Unpickler", "UnpicklingError")
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in PICKLES
            assert not {alias.name for alias in node.names} & (BUILTINS | ATTRIBUTES)
