import ast
import base64
import builtins
import collections
import json
import os
import pickle
import typing
import zlib

import pytest

from rewards import code_readers
from rewards.code_extraction import extract
from rewards.code_records import FunctionTests, StdioTests, parse_record
from rlhf.config.task import SourceConfig
from rlhf.data.prompts import load_prompts
from rlhf.errors import DataError

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "import math\n\ndef half(x):\n    return x / 2\n\ndef twice(x):\n    '''Double x.'''\n",
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert half(candidate(2)) == 2\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to double a number.",
    "code": "import sys\r\ndef helper(x):\r\n  return x\r\ndef twice(x):\r\n  return 2 * helper(x)",
    "test_setup_code": "",
    "test_list": ["assert twice(2) == 4", "assert twice(sys.maxsize) > 0"],
    "challenge_test_list": [],
}


def reference(mapped):
    assert extract(mapped["gold_completion"], ("python",)).source.strip() == mapped["reference"].strip()
    return mapped["reference"]


def test_humaneval_helpers_of_the_prompt_are_setup_and_the_stub_is_not():
    mapped = code_readers.humaneval_row(HUMANEVAL)
    tests = parse_record(mapped["tests"]).tests
    assert [getattr(node, "name", "") for node in ast.parse(tests.setup).body] == ["", "half"]
    assert tests.entry_points == ("twice",)
    assert tests.tests[0].endswith("check(twice)")
    assert "canonical" not in mapped["prompt"]
    assert "return 2 * x" not in mapped["prompt"]
    assert reference(mapped) == HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]


def test_mbpp_calls_what_the_reference_defines_and_shows_one_test():
    mapped = code_readers.mbpp_row(MBPP)
    tests = parse_record(mapped["tests"]).tests
    assert tests.entry_points == ("twice",)
    assert tests.setup == "import sys"
    assert len(tests) == 2
    assert "twice(2)" in mapped["prompt"]
    assert "maxsize" not in mapped["prompt"]


def test_sanitized_mbpp_is_read_as_well():
    row = {"task_id": 2, "prompt": "Double.", "code": MBPP["code"], "test_imports": ["import math"]}
    tests = parse_record(
        code_readers.mbpp_row({**row, "test_list": ["assert twice(math.e) > 5"]})["tests"]
    ).tests
    assert tests.setup == "import math"


def test_mbpp_leaves_out_what_cannot_be_graded_and_marks_what_is_weak():
    broken = {**MBPP, "test_setup_code": "root = Node(1)", "test_list": ["assert twice(root) == 4"]}
    assert code_readers.mbpp_row_or_weak(broken) is None
    weak = {**MBPP, "code": "class P: pass\ndef twice(x): return x", "test_list": ["assert twice(P())"]}
    assert code_readers.mbpp_row(weak) is None
    assert code_readers.mbpp_row_or_weak(weak)["tests"]["is_weak"] is True


def apps(cases, **columns):
    return {
        "problem_id": 7,
        "question": "Q",
        "solutions": '["print(1)"]',
        "input_output": json.dumps(cases),
        **columns,
    }


def test_apps_reads_standard_input_and_calls():
    mapped = code_readers.apps_row(apps({"inputs": ["1\n", ["2", "3"]], "outputs": ["1\n", ["4", "5"]]}))
    assert parse_record(mapped["tests"]).tests == StdioTests(inputs=("1\n", "2\n3"), outputs=("1\n", "4\n5"))
    assert (mapped["id"], reference(mapped)) == ("apps/7", "print(1)")
    calls = {"fn_name": "twice", "inputs": [[1], [{"1": 2}]], "outputs": [[2], [4]]}
    tests = parse_record(code_readers.apps_row(apps(calls, starter_code="def twice(x):"))["tests"]).tests
    assert isinstance(tests, FunctionTests)
    assert (tests.fn_name, tests.unwraps, tests.inputs[0]) == ("twice", True, [1])


@pytest.mark.parametrize(
    "given", ["", "{}", '{"inputs": [], "outputs": []}', '{"inputs": ["1"], "outputs": []}']
)
def test_apps_rows_without_tests_are_left_out(given):
    assert code_readers.apps_row({"question": "Q", "input_output": given}) is None
    assert (
        code_readers.apps_row(
            apps({"inputs": [[1]], "outputs": [0], "fn_name": "f"})
            | {"input_output": '{"fn_name": "f", "inputs": [[1]], "outputs": [' + "9" * 5000 + "]}"}
        )
        is None
    )


def lcb(public, private, **columns):
    row = {"question_id": "abc", "question_content": "Q", "starter_code": "", "metadata": "{}"}
    return {**row, "public_test_cases": json.dumps(public), "private_test_cases": private, **columns}


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def case(given, output, kind="stdin"):
    return {"input": given, "output": output, "testtype": kind}


@pytest.mark.parametrize(
    "pack", [json.dumps, lambda cases: packed(json.dumps(cases))], ids=["json", "pickled"]
)
def test_livecodebench_reads_public_and_private_cases(pack):
    mapped = code_readers.livecodebench_row(lcb([case("1\n", "1\n")], pack([case("2\n", "4\n")])))
    tests = parse_record(mapped["tests"]).tests
    assert (tests.inputs, tests.outputs) == (("1\n", "2\n"), ("1\n", "4\n"))
    assert mapped["id"] == "livecodebench/abc"


def test_livecodebench_functional_cases_are_calls_with_json_arguments():
    cases = [case('[1, 2]\n"a"', "[true]", "functional"), case('[]\n\n"b"', "null", "functional")]
    row = lcb(
        cases[:1],
        packed(json.dumps(cases[1:])),
        metadata='{"func_name": "pick"}',
        starter_code="class Solution:",
    )
    tests = parse_record(code_readers.livecodebench_row(row)["tests"]).tests
    assert tests.fn_name == "pick"
    assert tests.inputs == ([[1, 2], "a"], [[], "b"])
    assert tests.outputs == ([True], None)


def test_imports_of_call_based_tasks_hide_no_builtin_and_no_container():
    namespace = {}
    exec(code_readers.IMPORTS, namespace)
    assert namespace["Counter"] is collections.Counter
    assert namespace["Optional"] is typing.Optional
    hidden = {
        name
        for name in vars(builtins)
        if name in namespace and namespace[name] is not getattr(builtins, name)
    }
    assert hidden <= {"__name__", "__doc__", "__package__", "__loader__", "__spec__", "__build_class__"}


class _Runs:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


@pytest.mark.parametrize(
    "value", [_Runs(), [_Runs()], len, 5, [1], {"a": 1}], ids=lambda value: type(value).__name__
)
def test_pickle_of_anything_but_a_text_is_refused_and_runs_nothing(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="private_test_cases"):
        code_readers.livecodebench_row(lcb([], packed(value)))
    assert not list(tmp_path.iterdir())


def test_damaged_private_cases_are_an_error():
    for text in ("AAAA", packed("[1")[:-8], base64.b64encode(zlib.compress(b"\x80\x05")).decode()):
        with pytest.raises(ValueError):
            code_readers.livecodebench_row(lcb([], text))


CODEFORCES = {
    "id": "1/A",
    "title": "T",
    "description": "D",
    "input_format": "I",
    "output_format": "O",
    "interaction_format": None,
    "note": None,
    "examples": [{"input": "1", "output": "2"}],
    "official_tests": [{"input": "1", "output": "2"}, {"input": "3", "output": "6"}],
    "generated_checker": None,
    "input_mode": "stdio",
    "time_limit": 2.0,
    "memory_limit": 256.0,
}


def test_codeforces_compares_words_within_the_limits_of_the_task():
    record = parse_record(code_readers.codeforces_row(CODEFORCES)["tests"])
    assert record.tests == StdioTests(inputs=("1", "3"), outputs=("2", "6"), compare="tokens")
    assert (record.cpu_s, record.memory_mb) == (2.0, 256.0)


@pytest.mark.parametrize(
    "column", [{"generated_checker": "import sys"}, {"interaction_format": "ask"}, {"input_mode": "file"}]
)
def test_codeforces_tasks_that_only_a_program_judges_are_refused_with_the_way_out(column):
    with pytest.raises(DataError, match="codeforces_row_or_none"):
        code_readers.codeforces_row(CODEFORCES | column)
    assert code_readers.codeforces_row_or_none(CODEFORCES | column) is None
    assert code_readers.codeforces_row_or_none(CODEFORCES) is not None


def test_rows_load_as_prompts_whose_tests_are_a_column(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps(row) + "\n" for row in (MBPP, {**MBPP, "task_id": 12, "code": "x = 1"}))
    )
    source = SourceConfig(file=str(file), mapper="rewards.code_readers:mbpp_row")
    (prompt,) = load_prompts(source, key="task.train", require_reference=True)
    assert prompt.id == "mbpp/11"
    assert "twice" in prompt.reference
    assert prompt.columns["tests"]["kind"] == "asserts"
    assert json.loads(json.dumps(prompt.columns)) == prompt.columns


def test_row_of_another_data_set_is_an_error_that_names_the_column():
    for reader in (code_readers.humaneval_row, code_readers.mbpp_row, code_readers.livecodebench_row):
        with pytest.raises(DataError, match="columns are"):
            reader({"question": "Q"})
