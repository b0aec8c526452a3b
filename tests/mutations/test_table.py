"""The table of planted bugs follows the code; the bugs themselves are tried by `python -m tests.mutations`."""

import ast
from collections import Counter

import pytest

from tests.mutations.table import MUTATIONS
from tests.mutations.trial import ROOT

SUBJECTS = sorted(path for path in (ROOT / "rlhf/algorithms").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_bug_applies_exactly_once(mutation):
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    changed = mutation.applied(source)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
    assert mutation.tests
    assert all((ROOT / test).is_file() for test in mutation.tests)
    assert mutation.equivalent is None or mutation.equivalent.endswith(".")


def test_the_table_is_large_and_its_names_are_unique():
    assert sum(mutation.equivalent is None for mutation in MUTATIONS) >= 40
    assert not [name for name, count in Counter(m.name for m in MUTATIONS).items() if count > 1]


@pytest.mark.parametrize("path", SUBJECTS, ids=lambda path: path.stem)
def test_every_public_function_has_a_planted_bug(path):
    source = path.read_text(encoding="utf-8")
    changed_lines = [
        source[: source.index(m.old) + len(m.old) - len(m.old.lstrip())].count("\n") + 1
        for m in MUTATIONS
        if ROOT / m.file == path and not m.equivalent
    ]
    bare = [
        node.name
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if not is_record(node) and not any(node.lineno <= line <= node.end_lineno for line in changed_lines)
    ]
    assert not bare


def is_record(node: ast.stmt) -> bool:
    """A class of fields only."""
    return isinstance(node, ast.ClassDef) and not any(isinstance(n, ast.FunctionDef) for n in node.body)
