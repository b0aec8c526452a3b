"""Rows of public programming data sets as prompts: functions for a source's `mapper`.

Each gives `prompt`, the column `tests` (`rewards.code_records`) and, where the row has a solution, `reference` and
`gold_completion`: for `rlhf check`, never shown to the model. None leaves out a row that cannot be graded.
"""

import ast
import builtins
import io
import json
import pickle
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from rewards.code_records import inflate, pack
from rlhf.errors import DataError

Row = Mapping[str, Any]
IMPORTS = """\
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string, sys
from typing import *
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from builtins import pow
sys.setrecursionlimit(50000)
"""
"""What the judges of call-based tasks (LeetCode and its like) let solutions take for granted."""
_STDIO_HINT = "Read the input from standard input and write the answer to standard output."
_BLOCK_HINT = "Give the whole program in one ```python block."


def humaneval_row(row: Row) -> dict[str, Any]:
    """HumanEval: {task_id, prompt, entry_point, canonical_solution, test}."""
    prompt, entry_point = _text(row, "prompt"), _text(row, "entry_point")
    return {
        "id": _text(row, "task_id"),
        "prompt": f"Complete this Python function. {_BLOCK_HINT}\n\n{_fenced(prompt)}",
        **_solved(prompt + _text(row, "canonical_solution")),
        "tests": {
            "kind": "asserts",
            "setup": _without_function(prompt, entry_point),
            "tests": [f"{_text(row, 'test')}\ncheck({entry_point})"],
            "entry_points": [entry_point],
        },
    }


def _without_function(source: str, name: str) -> str:
    """The imports and helpers around an unfinished function."""
    tree = ast.parse(source)
    kept = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == name)]
    return ast.unparse(ast.Module(kept, []))


def mbpp_row(row: Row) -> dict[str, Any] | None:
    """MBPP, full or sanitized: {task_id, text | prompt, code, test_list, test_setup_code | test_imports}.

    The prompt shows the first test, for the function's name and arguments. Left out: rows whose tests name what
    neither they nor the solution define (367 and 927), and weak ones, whose values cannot leave the solution's
    process (see `mbpp_row_or_weak`).
    """
    mapped = mbpp_row_or_weak(row)
    return None if mapped is None or mapped["tests"]["is_weak"] else mapped


def mbpp_row_or_weak(row: Row) -> dict[str, Any] | None:
    """As `mbpp_row`, with the rows whose tests must run in the solution's process, marked weak."""
    code, tests = _text(row, "code"), list(row["test_list"])
    setup = "\n".join(row["test_imports"]) if "test_imports" in row else str(row.get("test_setup_code") or "")
    used = _names_read("\n".join(tests))
    defined, imports, classes = _defined(code)
    setup = "\n".join([*(text for name, text in imports.items() if name in used), setup]).strip()
    entry_points = sorted(used & defined)
    unknown = used - defined - classes - imports.keys() - _names_bound(setup) - set(dir(builtins))
    if unknown or not entry_points or _names_read(setup) - _names_bound(setup) - set(dir(builtins)):
        return None
    question = str(row["text"] if "text" in row else row["prompt"]).strip()
    return {
        "id": f"mbpp/{row['task_id']}",
        "prompt": f"{question} {_BLOCK_HINT} It must pass tests like this one:\n\n{_fenced(tests[0])}",
        **_solved(code),
        "tests": {
            "kind": "asserts",
            "setup": setup,
            "tests": tests,
            "entry_points": entry_points,
            "is_weak": bool(used & classes),
        },
    }


def _defined(code: str) -> tuple[set[str], dict[str, str], set[str]]:
    """The functions, the imports (name -> statement) and the classes at a module's top level."""
    body = ast.parse(code).body
    imports = {
        (alias.asname or alias.name).partition(".")[0]: ast.unparse(node)
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    return functions, imports, {node.name for node in body if isinstance(node, ast.ClassDef)}


def _names_read(code: str) -> set[str]:
    names = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name))
    return {node.id for node in names if isinstance(node.ctx, ast.Load)}


def _names_bound(code: str) -> set[str]:
    functions, imports, classes = _defined(code)
    names = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name))
    return functions | imports.keys() | classes | {n.id for n in names if isinstance(n.ctx, ast.Store)}


def apps_row(row: Row) -> dict[str, Any] | None:
    """APPS and TACO: {question, input_output (JSON text), starter_code, solutions (JSON list)[, problem_id]}.

    With `fn_name` in input_output the tests call that function, else they use standard input. Rows without a
    test are left out, and rows with an integer too long for JSON readers.
    """
    given = str(row.get("input_output") or "")
    try:
        cases = json.loads(given) if given else {}
    except ValueError as error:
        if "integer string conversion" in str(error):
            return None
        raise DataError(f"input_output is no JSON: {error}") from error
    if not cases.get("inputs") or len(cases["inputs"]) != len(cases.get("outputs", ())):
        return None
    starter = str(row.get("starter_code") or "").strip()
    mapped = {"prompt": _task(_text(row, "question"), starter, is_call="fn_name" in cases)}
    if "problem_id" in row or "id" in row:
        mapped["id"] = f"apps/{row.get('problem_id', row.get('id'))}"
    solutions = row.get("solutions") or []
    solutions = json.loads(solutions) if isinstance(solutions, str) else solutions
    if solutions:
        mapped |= _solved(solutions[0])
    if "fn_name" in cases:
        tests = _function_tests(cases["fn_name"], cases["inputs"], cases["outputs"]) | {"unwraps": True}
    else:
        tests = {
            "kind": "stdio",
            "inputs": [_lines(text) for text in cases["inputs"]],
            "outputs": [_lines(text) for text in cases["outputs"]],
        }
    return mapped | {"tests": pack(tests)}


def _lines(text: Any) -> str:
    return "\n".join(map(str, text)) if isinstance(text, list) else str(text)


def _function_tests(name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> dict[str, Any]:
    return {
        "kind": "function",
        "fn_name": name,
        "inputs": list(inputs),
        "outputs": list(outputs),
        "setup": IMPORTS,
    }


def livecodebench_row(row: Row) -> dict[str, Any]:
    """LiveCodeBench: {question_content, starter_code, public_test_cases, private_test_cases, metadata, question_id}.

    Private cases are JSON text or the data set's packing of it (base64 of zlib of a pickled text); of the pickle
    nothing but a text is accepted.
    """
    cases = [*json.loads(_text(row, "public_test_cases")), *_private_cases(str(row["private_test_cases"]))]
    if not cases:
        raise DataError("public_test_cases and private_test_cases are both empty.")
    starter = str(row.get("starter_code") or "").strip()
    metadata = row.get("metadata") or {}
    metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    if cases[0]["testtype"] == "functional":
        inputs = [[json.loads(line) for line in case["input"].split("\n") if line.strip()] for case in cases]
        outputs = [json.loads(case["output"]) for case in cases]
        tests = _function_tests(str(metadata["func_name"]), inputs, outputs)
    else:
        texts = ([case[side] for case in cases] for side in ("input", "output"))
        tests = {"kind": "stdio", **dict(zip(("inputs", "outputs"), texts, strict=True))}
    prompt = _task(_text(row, "question_content"), starter, is_call=bool(starter))
    return {"id": f"livecodebench/{row['question_id']}", "prompt": prompt, "tests": pack(tests)}


def _private_cases(text: str) -> list[dict[str, str]]:
    try:
        cases = json.loads(text) if text.strip() else []
    except ValueError:
        cases = json.loads(_pickled_text(inflate(b64decode(text))))
    return list(cases)


class _TextUnpickler(pickle.Unpickler):
    """Builds plain data only: a pickle that names any class or function is refused, nothing of it runs."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(f"private_test_cases pickle {module}.{name}; expected nothing but a text.")


def _pickled_text(data: bytes) -> str:
    try:
        loaded = _TextUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, IndexError, UnicodeDecodeError) as error:
        raise DataError(f"private_test_cases is no pickled text: {error}") from error
    if not isinstance(loaded, str):
        raise DataError(f"private_test_cases pickle a {type(loaded).__name__}, expected a text.")
    return loaded


def codeforces_row(row: Row) -> dict[str, Any]:
    """Codeforces: {title, description, input_format, output_format, note, examples, official_tests, time_limit, ...}.

    Tests are the official ones, else the examples: lists of {input, output}. Raises DataError for tasks that only a
    program can judge (`generated_checker`, `checker`, `interaction_format`) or that read files: see
    `codeforces_row_or_none`.
    """
    problem = _needs_a_program(row)
    if problem:
        raise DataError(
            f"the task {problem}, and checker programs are not run: many answers would be right, one is recorded. "
            "Leave such rows out with mapper: rewards.code_readers:codeforces_row_or_none."
        )
    cases = row.get("official_tests") or row.get("examples") or []
    if not cases:
        raise DataError("official_tests and examples are both empty.")
    parts = [str(row.get(name) or "") for name in ("title", "description")]
    for name, heading in (("input_format", "Input"), ("output_format", "Output"), ("note", "Note")):
        parts += [f"{heading}\n{row[name]}"] if row.get(name) else []
    parts += [f"Example\ninput:\n{c['input']}\noutput:\n{c['output']}" for c in row.get("examples") or []]
    tests = {
        "kind": "stdio",
        "inputs": [case["input"] for case in cases],
        "outputs": [case["output"] for case in cases],
        "compare": "tokens",
    }
    limits = {"cpu_s": row.get("time_limit"), "memory_mb": row.get("memory_limit")}
    tests |= {name: value for name, value in limits.items() if value}
    mapped = {"prompt": _task("\n\n".join(filter(None, parts)), "", is_call=False), "tests": pack(tests)}
    return mapped | ({"id": f"codeforces/{row['id']}"} if "id" in row else {})


def codeforces_row_or_none(row: Row) -> dict[str, Any] | None:
    """As `codeforces_row`; tasks that only a program can judge are left out."""
    return None if _needs_a_program(row) else codeforces_row(row)


def _needs_a_program(row: Row) -> str:
    """Why the recorded outputs do not decide, or nothing."""
    for name in ("generated_checker", "checker", "interaction_format"):
        if row.get(name):
            return f"has {name}"
    return "reads and writes files" if row.get("input_mode") not in (None, "stdio") else ""


def _task(question: str, starter: str, *, is_call: bool) -> str:
    hint = "" if is_call else f"{_STDIO_HINT} "
    begun = f"\n\nStart from this:\n\n{_fenced(starter)}" if starter else ""
    return f"{question.strip()}\n\n{hint}{_BLOCK_HINT}{begun}"


def _solved(code: str) -> dict[str, str]:
    return {"reference": code, "gold_completion": f"<think>x</think>\n{_fenced(code)}"}


def _fenced(code: str) -> str:
    return f"```python\n{code.strip(chr(10))}\n```"


def _text(row: Row, name: str) -> str:
    if not isinstance(row.get(name), str):
        raise DataError(f"the row has no text in {name!r}; its columns are {sorted(row)}.")
    return str(row[name])
