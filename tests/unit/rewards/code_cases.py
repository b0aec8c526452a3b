"""One small task in each kind of record, and the sandbox that grades it."""

from collections.abc import Iterator

import pytest

from rewards.code_tests import CodeTests
from rlhf.errors import RewardError, SandboxError
from rlhf.sandbox.client import Sandbox
from rlhf.types import Message, Prompt

FUNCTION = {
    "kind": "function",
    "fn_name": "solve",
    "inputs": [[2, 3], [10, -4], [0.1, 0.2]],
    "outputs": [5, 6, 0.3],
    "tolerance": 1e-9,
}
ASSERTS = {
    "kind": "asserts",
    "setup": "import math\n",
    "tests": [
        "assert solve(2, 3) == 5",
        "def check(candidate):\n    assert candidate(10, -4) == 6, 'ten'\n    assert not candidate(1, 1) != 2\n"
        "check(solve)",
        "assert abs(solve(0.1, 0.2) - 0.3) < 1e-9 and math.isclose(solve(1.5, 1.5), 3.0)",
    ],
    "entry_points": ["solve"],
}
STDIO = {
    "kind": "stdio",
    "inputs": ["2 3\n4 4\n", "10 -4\n1 1\n", "0 0\n0 7\n"],
    "outputs": ["5\n8\n", "6\n2\n", "0\n7\n"],
}
RECORDS = {"function": FUNCTION, "asserts": ASSERTS, "stdio": STDIO}
RIGHT = {
    "function": "def solve(a, b):\n    return a + b\n",
    "asserts": "def solve(a, b):\n    return a + b\n",
    "stdio": "import sys\nfor line in sys.stdin:\n    a, b = map(int, line.split())\n    print(a + b)\n",
}


def parse_attacks(text: str, before: str = "") -> list[tuple[str, str, str]]:
    """(name, reason, code) of each `### name: reason` and the lines under it; `before` goes before every code."""
    entries = [entry.partition("\n") for entry in f"\n{text.strip()}\n".split("\n### ")[1:]]
    heads = [head.partition(": ") for head, _, _ in entries]
    return [(name, why, before + code) for (name, _, why), (_, _, code) in zip(heads, entries, strict=True)]


def prompt(name: str = "p") -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content="add"),))


def fenced(code: str, label: str = "python") -> str:
    return f"Here it is.\n\n```{label}\n{code}\n```\n"


def grade(sandbox, code, tests, **kwargs):
    """The result of a program in one block. Asked again, as a run asks, where the machine gave it no core."""
    reward = CodeTests(sandbox=sandbox, **kwargs)
    label = kwargs.get("languages", ["python"])[0]
    for _ in range(3):
        try:
            return reward(completion=fenced(code, label), tests=tests, prompt=prompt())
        except RewardError as error:
            if "for a core" not in str(error):
                raise
            starved = error
    raise starved


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """A sandbox of the strongest tier there is; skips where there is none."""
    with Sandbox() as found:
        try:
            assert found.tier
        except SandboxError as error:
            pytest.skip(str(error))
        yield found
