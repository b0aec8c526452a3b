import inspect
import pickle

import pytest

from rlhf import errors

CHILDREN = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, errors.RlhfError) and value is not errors.RlhfError
]


@pytest.mark.parametrize("child", CHILDREN, ids=lambda child: child.__name__)
def test_every_error_is_also_the_standard_librarys_of_its_kind(child):
    assert [base for base in child.__bases__ if base is not errors.RlhfError and issubclass(base, Exception)]


@pytest.mark.parametrize("child", CHILDREN, ids=lambda child: child.__name__)
def test_every_error_survives_the_way_between_processes(child):
    copy = pickle.loads(pickle.dumps(child("what was found")))
    assert type(copy) is child
    assert str(copy) == "what was found"
