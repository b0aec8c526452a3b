"""Rewards never turn text into code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTENT = sorted((ROOT / "rewards").rglob("*.py"))
BUILTINS = {"eval", "exec", "compile", "__import__", "globals", "getattr"}
ATTRIBUTES = {"parse_expr", "sympify", "lambdify", "S", "literal_eval", "system", "popen"}
PICKLES = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}


@pytest.mark.parametrize("path", CONTENT, ids=lambda path: path.name)
def test_reward_calls_nothing_that_runs_text(path):
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    methods = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    assert not names & (BUILTINS | ATTRIBUTES)
    assert not methods & ATTRIBUTES


@pytest.mark.parametrize("path", CONTENT, ids=lambda path: path.name)
def test_reward_imports_no_string_parser_and_no_pickle(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & PICKLES
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in PICKLES
            assert not {alias.name for alias in node.names} & (BUILTINS | ATTRIBUTES)
