import json

import pytest

from rewards.code_records import AssertTests, FunctionTests, StdioTests, pack, parse_record
from rlhf.errors import DataError

STDIO = {"kind": "stdio", "inputs": ["1\n", "2\n"], "outputs": ["1\n", "4\n"]}
FUNCTION = {"kind": "function", "fn_name": "square", "inputs": [[1], [2]], "outputs": [1, 4]}
ASSERTS = {"kind": "asserts", "tests": ["assert square(2) == 4"], "entry_points": ["square"]}


def test_each_kind_is_read_from_its_column():
    assert parse_record(STDIO).tests == StdioTests(inputs=("1\n", "2\n"), outputs=("1\n", "4\n"))
    assert parse_record(FUNCTION).tests == FunctionTests(fn_name="square", inputs=([1], [2]), outputs=(1, 4))
    asserts = AssertTests(tests=("assert square(2) == 4",), entry_points=("square",))
    assert parse_record(ASSERTS).tests == asserts


def test_what_holds_for_all_tests_is_read_beside_them():
    record = parse_record({**STDIO, "language": "cpp", "hardest": [1], "cpu_s": 2.0, "memory_mb": 256})
    assert (record.language, record.hardest, record.cpu_s, record.memory_mb) == ("cpp", (1,), 2.0, 256)


def test_column_may_be_json_text_or_packed():
    long = {**STDIO, "inputs": ["7" * 30_000, "2\n"], "hardest": [1]}
    packed = pack(long)
    assert set(packed) == {"kind", "packed"}
    assert len(packed["packed"]) < 1000
    assert json.loads(json.dumps(packed)) == packed
    assert parse_record(packed) == parse_record(json.dumps(packed)) == parse_record(long)
    assert pack(STDIO) == STDIO


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (None, "NoneType"),
        ("{", "not JSON"),
        ("[1]", "list"),
        ({}, "kind is None"),
        ({**STDIO, "kind": "checker"}, "expected one of stdio, function, asserts"),
        ({**STDIO, "outputs": ["1\n"]}, "2 inputs but 1 outputs"),
        ({**STDIO, "inputs": [], "outputs": []}, "empty"),
        ({**STDIO, "inputs": "1\n"}, "inputs"),
        ({**STDIO, "inputs": [1, 2]}, "list of texts"),
        ({**STDIO, "checker": "int main"}, "checker"),
        ({**STDIO, "cpu_s": 0}, "cpu_s"),
        ({**STDIO, "memory_mb": "256"}, "memory_mb"),
        ({**STDIO, "hardest": [2]}, "hardest"),
        ({**STDIO, "hardest": ["0"]}, "hardest"),
        ({**FUNCTION, "inputs": [1, 2]}, "positional arguments"),
        ({**FUNCTION, "language": "cpp"}, "'cpp'"),
        ({"kind": "function", "inputs": [[1]], "outputs": [1]}, "fn_name"),
        ({**ASSERTS, "tests": "assert True"}, "tests"),
        ({"kind": "stdio", "packed": "AAAA"}, "zlib"),
    ],
)
def test_malformed_column_is_an_error_that_names_the_field(column, problem):
    with pytest.raises(DataError, match=problem):
        parse_record(column)
