import sys

import pytest

from rlhf.errors import LoadError, RlhfError
from rlhf.importing import load_function, load_object


@pytest.fixture
def module_file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text("LIMIT = 3\n\ndef grade(prompt):\n    return prompt\n")
    return path


def test_object_of_an_installed_module_is_loaded():
    assert load_object("rlhf.errors:RlhfError", key="x") is RlhfError


def test_object_of_a_file_is_loaded(module_file):
    assert load_object(f"{module_file}:LIMIT", key="x") == 3
    assert load_function(f"{module_file}:grade", key="x")("p") == "p"


@pytest.mark.parametrize("spec", ["no_colon", ":grade", "module:", ""])
def test_malformed_name_shows_the_expected_form(spec):
    with pytest.raises(LoadError, match=r"task\.rewards\.0\.use: found .* expected 'module:attribute'"):
        load_object(spec, key="task.rewards.0.use")


def test_misspelt_attribute_is_answered_with_the_nearest(module_file):
    with pytest.raises(LoadError, match=r"Did you mean .*my_rewards\.py:grade"):
        load_object(f"{module_file}:grad", key="x")


def test_missing_module_names_key_and_module():
    with pytest.raises(LoadError, match=r"task\.x: .*no_such_module_here"):
        load_object("no_such_module_here:grade", key="task.x")


def test_missing_file_names_the_path(tmp_path):
    with pytest.raises(LoadError, match=r"gone\.py"):
        load_object(f"{tmp_path / 'gone.py'}:grade", key="x")


def test_module_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    (tmp_path / "needs_absent.py").write_text("import absent_dependency_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LoadError, match="absent_dependency_here"):
        load_object("needs_absent:grade", key="x")
    assert "needs_absent" not in sys.modules


def test_what_is_not_callable_is_no_function(module_file):
    with pytest.raises(LoadError, match="LIMIT"):
        load_function(f"{module_file}:LIMIT", key="x")
