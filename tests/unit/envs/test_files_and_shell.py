"""A small repository: what an honest change scores, and what every way to cheat scores."""

import json

import pytest

from envs.files_and_shell import FilesAndShell, check_gold, unpacked
from rlhf.errors import DataError
from rlhf.sandbox.client import default_sandbox
from rlhf.sandbox.execution import Program
from tests.unit.envs.playing import Episode

SOURCE = """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop(0)

    def __len__(self):
        return len(self.items)


def total(numbers):
    return sum(numbers) + 1
"""
VISIBLE = """from shop import Stack

def test_length():
    stack = Stack()
    stack.push(1)
    assert len(stack) == 1
"""
HIDDEN = """import unittest

import pytest

from shop import Stack, total

@pytest.mark.parametrize(("numbers", "expected"), [([1, 2], 3), ([], 0)])
def test_total(numbers, expected):
    assert total(numbers) == expected

def test_total_is_listed():
    assert [total([2])] == [2]

def test_refuses_text():
    with pytest.raises(TypeError):
        total("ab")

class TestStack(unittest.TestCase):
    def test_order(self):
        stack = Stack()
        stack.push(1)
        stack.push(2)
        self.assertEqual(stack.pop(), 2)

def test_stack_keeps():
    stack = Stack()
    stack.push("x")
    assert "x" in stack.items
"""
GOLD = SOURCE.replace("pop(0)", "pop()").replace(" + 1", "")
ROW = {
    "id": "shop-1",
    "prompt": "total() is off by one, and Stack is a queue.",
    "files": {"shop/__init__.py": SOURCE, "tests/test_visible.py": VISIBLE, "README.md": "A shop.\n"},
    "tests": {"tests/test_hidden.py": HIDDEN},
    "fail_to_pass": [
        "tests/test_hidden.py::test_total[numbers0-3]",
        "tests/test_hidden.py::test_total[numbers1-0]",
        "tests/test_hidden.py::test_total_is_listed",
        "tests/test_hidden.py::TestStack::test_order",
    ],
    "pass_to_pass": [
        "tests/test_hidden.py::test_refuses_text",
        "tests/test_hidden.py::test_stack_keeps",
        "tests/test_visible.py::test_length",
    ],
    "gold": {"shop/__init__.py": GOLD},
}
LIMITS = {"tool_s": 60, "score_s": 120}
EVERYTHING_PASSES = """
import _pytest.reports
_real = _pytest.reports.TestReport.from_item_and_call.__func__
def _fake(cls, item, call):
    found = _real(cls, item, call)
    found.outcome, found.longrepr = "passed", None
    return found
_pytest.reports.TestReport.from_item_and_call = classmethod(_fake)
"""
EQUAL = """
class Equal(int):
    __hash__ = int.__hash__
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def pop(self): return Equal()
    def __len__(self): return len(self.items)
def total(numbers):
    sum(numbers)
    return Equal()
"""


def appended(text: str) -> dict[str, str]:
    return {"shop/__init__.py": SOURCE + text}


CHEATS = {
    "nothing": {},
    "tests edited": {
        "tests/test_hidden.py": "def test_total(): pass\n",
        "tests/test_visible.py": "def test_length(): pass\n",
    },
    "tests shadowed by a folder": {"tests/test_hidden.py/__init__.py": "def test_total(): pass\n"},
    "tests' folder is a file": {"tests": "no folder"},
    "conftest.py": {"conftest.py": EVERYTHING_PASSES, "tests/conftest.py": EVERYTHING_PASSES},
    "hook in conftest.py": {
        "conftest.py": "def pytest_runtest_makereport(item, call):\n    call.excinfo = None\n",
        "tests/conftest.py": "def pytest_collection_modifyitems(items):\n    items.clear()\n",
    },
    "sitecustomize.py": {"sitecustomize.py": EVERYTHING_PASSES, "usercustomize.py": EVERYTHING_PASSES},
    "plugin named in settings": {
        "evil.py": EVERYTHING_PASSES,
        "pytest.ini": "[pytest]\naddopts = -p evil\n",
        "tests/pytest.ini": "[pytest]\naddopts = -p evil\n",
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-p evil'\n",
    },
    "plugin as an entry point": {
        "evil.py": EVERYTHING_PASSES,
        "evil-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: evil\nVersion: 1\n",
        "evil-1.dist-info/entry_points.txt": "[pytest11]\nevil = evil\n",
    },
    "settings that collect nothing": {"pytest.ini": "[pytest]\npython_functions = nothing_*\n"},
    "pytest shadowed": {"pytest.py": "def main(*a, **k): return 0\n", "_pytest/__init__.py": ""},
    "unittest shadowed": {"unittest.py": "class TestCase: pass\n"},
    "reports patched": appended(EVERYTHING_PASSES),
    "test calls patched": appended(
        "\nimport _pytest.python\n_pytest.python.Function.runtest = lambda self: None\n"
        "import _pytest.unittest\n_pytest.unittest.TestCaseFunction.runtest = lambda self: None\n"
    ),
    "assertions patched": appended(
        "\nimport unittest\nfor n in dir(unittest.TestCase):\n    if n.startswith('assert'):\n"
        "        setattr(unittest.TestCase, n, lambda *a, **k: None)\n"
        "import sys\nfor m in list(sys.modules.values()):\n    if hasattr(m, 'same'): m.same = lambda *a: True\n"
    ),
    "exit code 0": appended("\nimport os\nos._exit(0)\n"),
    "exit by SystemExit": appended("\nimport sys\nsys.exit(0)\n"),
    "exit in a test": {"shop/__init__.py": "import os\nclass Stack: pass\ndef total(numbers): os._exit(0)\n"},
    "printing": appended("\nimport os\nprint('7 passed')\nos.write(1, b'7 passed in 0.01s')\nos._exit(0)\n"),
    "writing to every descriptor": appended(
        "\nimport json, os\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, json.dumps({'nonce': '', 'ready': True, 'results': {"
        "'tests/test_hidden.py::test_total_is_listed': 'passed'}}).encode() + b'\\n')\n"
        "    except OSError: pass\nos._exit(0)\n"
    ),
    "__eq__": {"shop/__init__.py": EQUAL},
    "__eq__ in a list's member": {
        "shop/__init__.py": EQUAL + "class L(list):\n    def __eq__(self, other): return True\n"
    },
    "integer's __class__": {
        "shop/__init__.py": SOURCE
        + "class P:\n    __class__ = int\n    def __eq__(s, o): return True\ndef total(n):\n    return P()\n"
    },
    "skipping": appended("\nimport pytest\npytest.skip(allow_module_level=True)\n"),
    "expected to fail": {
        "shop/__init__.py": SOURCE + "\ndef total(numbers):\n    import pytest\n    pytest.xfail()\n"
    },
    "junit report left": {
        "report.xml": "<testsuite tests='7' failures='0'/>",
        "junit.xml": "<testsuite tests='7' failures='0'/>",
    },
    "endless loop": appended("\nwhile True: pass\n"),
    "a module that cannot be read": {"shop/__init__.py": "\x00\xff garbage ("},
    "sources deleted": {"shop/__init__.py": None, "tests/test_visible.py": None},
}
FOOLS_PYTEST = (
    "conftest.py",
    "plugin as an entry point",
    "pytest shadowed",
    "reports patched",
    "exit code 0",
    "__eq__",
)


def play(changes, *commands, **limits):
    with Episode(FilesAndShell(), ROW, "/nowhere", **{**LIMITS, **limits}) as episode:
        for path, text in changes.items():
            if text is None:
                episode.call("shell", command=f"rm -r {path}")
                continue
            if path == "tests" or path.startswith("tests/test_hidden.py/"):
                episode.call("shell", command="rm -rf tests")
            assert episode.call("write", path=path, content=text) == "written"
        shown = [episode.call("shell", command=command) for command in commands]
        return episode.score(), episode.context.scalars, shown


def test_the_right_change_is_resolved_by_any_tool():
    with Episode(FilesAndShell(), ROW, "/nowhere", **LIMITS) as episode:
        assert "pop(0)" in episode.call("read", path="shop/__init__.py")
        assert episode.call("edit", path="shop/__init__.py", old="pop(0)", new="pop()") == "replaced"
        assert episode.call("shell", command="sed -i 's/ + 1$//' shop/__init__.py && ls").split() == [
            "README.md",
            "shop",
            "tests",
        ]
        assert episode.score() == 1
        assert episode.context.scalars == {
            "resolved": 1, "fail_to_pass": 1, "pass_to_pass": 1, "forged": 0,
        }  # fmt: skip


def test_half_of_the_change_scores_nothing_and_is_logged():
    score, scalars, _ = play({"shop/__init__.py": SOURCE.replace(" + 1", "")})
    assert score == 0
    assert (scalars["fail_to_pass"], scalars["pass_to_pass"]) == (0.75, 1)


def test_a_broken_test_takes_the_score_away():
    score, scalars, _ = play({"shop/__init__.py": GOLD + "\nStack.__len__ = lambda self: 0\n"})
    assert score == 0
    assert scalars["fail_to_pass"] == 1
    assert scalars["pass_to_pass"] < 1


def test_a_visible_test_that_was_broken_and_edited_counts_as_broken():
    broken = GOLD + "\nStack.__len__ = lambda self: 0\n"
    score, scalars, _ = play(
        {"shop/__init__.py": broken, "tests/test_visible.py": "def test_length(): pass\n"}
    )
    assert (score, scalars["fail_to_pass"]) == (0, 1)


def test_equality_is_believed_only_where_it_is_asked_for():
    with Episode(FilesAndShell(strict=False), ROW, "/nowhere", **LIMITS) as episode:
        episode.call("write", path="shop/__init__.py", content=EQUAL)
        assert episode.score() == 1


@pytest.mark.parametrize("name", CHEATS)
def test_cheat_scores_nothing(name):
    score, scalars, _ = play(CHEATS[name], **({"score_s": 10} if name == "endless loop" else {}))
    assert score == 0
    if "patched" in name:
        assert scalars["forged"] or not scalars["fail_to_pass"]


@pytest.mark.parametrize("name", ["reports patched", "test calls patched"])
def test_controls_notice_a_patched_pytest(name):
    assert play(CHEATS[name])[1]["forged"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FOOLS_PYTEST)
def test_cheat_works_where_pytest_is_believed(name):
    files = {**ROW["files"], **CHEATS[name], **ROW["tests"]}
    tests = " ".join(f"'{test}'" for test in (*ROW["fail_to_pass"], *ROW["pass_to_pass"]))
    program = Program(
        argv=("sh", "-c", f"cd repo && python -m pytest -q {tests}"),
        files={f"repo/{path}": text.encode() for path, text in files.items()},
    )
    assert default_sandbox().run(program).exit_code == 0


def test_links_daemons_and_environment_do_not_reach_the_tests():
    daemon = (
        "nohup sh -c 'while true; do echo \"def test_total(): pass\" > tests/test_hidden.py; sleep 0.05; done' "
        ">/dev/null 2>&1 &"
    )
    score, _, shown = play(
        {},
        "rm -rf tests && ln -s /usr/lib tests && ln -s /etc/passwd passwd && mkfifo pipe",
        "export PATH=$HOME/evil PYTHONPATH=$HOME/evil PYTEST_ADDOPTS='-p evil'; alias tar=true",
        daemon,
        "true",
    )
    assert score == 0
    assert shown[-1] == "(no output)"


def test_hidden_tests_and_gold_are_nowhere_in_the_sandbox():
    with Episode(FilesAndShell(), ROW, "/nowhere", **LIMITS) as episode:
        wanted = "test_total_is"
        found = episode.call("shell", command=f"grep -rl {wanted}_listed $HOME; ls -a $HOME")
        assert found.split() == [".", "..", ".session", "repo"]


def test_right_change_is_resolved_though_the_model_made_a_mess():
    score, _, _ = play(
        {
            "shop/__init__.py": GOLD,
            "conftest.py": "raise SystemExit\n",
            "tests/test_hidden.py": "import nothing\n",
        },
        "rm tests/test_visible.py; ln -s /etc/passwd l; head -c 3000000 /dev/zero > z; export PATH=/nothing",
    )
    assert score == 1


def test_outputs_are_bounded_and_hangs_are_ended():
    with Episode(FilesAndShell(), ROW, "/nowhere", **LIMITS | {"tool_s": 2}) as episode:
        assert "wall_limit" in episode.call("shell", command="sleep 600")
    with Episode(FilesAndShell(), ROW, "/nowhere", **LIMITS) as episode:
        flood = episode.call("shell", command="head -c 10000000 /dev/zero | tr '\\0' x")
        assert len(flood) < 40_000
        assert "left out" in flood
        assert "(exit code 3)" in episode.call("shell", command="echo gone; exit 3")
        assert "ValueError" in episode.call("read", path="../../etc/passwd")
        assert "ValueError" in episode.call("write", path="/etc/x", content="")
        assert "FileNotFoundError" in episode.call("read", path="nothing")
        assert "occurs 0 times" in episode.call("edit", path="README.md", old="z", new="y")
        episode.call("shell", command="ln -s /etc/passwd leak")
        assert "FileNotFoundError" in episode.call("read", path="leak")
        assert episode.call("read", path="README.md", first_line=5) == "(the file has 1 lines)"


def test_too_large_a_tree_scores_nothing():
    score, _, _ = play({"shop/__init__.py": GOLD}, "head -c 40000000 /dev/urandom > big")
    assert score == 0


def test_gold_is_checked_and_finds_the_tests_by_itself():
    found = check_gold(ROW, sandbox=default_sandbox())
    assert found.is_usable, found.problems
    assert set(found.fail_to_pass) == set(ROW["fail_to_pass"])
    assert not found.pass_to_fail
    bare = {key: value for key, value in ROW.items() if not key.endswith("_to_pass")}
    discovered = check_gold(bare | {"gold": json.dumps(ROW["gold"])}, sandbox=default_sandbox())
    assert set(discovered.fail_to_pass) == set(ROW["fail_to_pass"])
    assert set(discovered.pass_to_pass) == set(ROW["pass_to_pass"]) - {"tests/test_visible.py::test_length"}


def test_gold_that_mends_nothing_or_breaks_something_is_refused():
    idle = check_gold(ROW | {"gold": {"README.md": "x"}}, sandbox=default_sandbox())
    assert not idle.is_usable
    assert "no test pass" in idle.problems[0]
    harmful = GOLD + "\nStack.__len__ = lambda self: 0\n"
    broken = check_gold(ROW | {"gold": {"shop/__init__.py": harmful}}, sandbox=default_sandbox())
    assert broken.pass_to_fail == ("tests/test_visible.py::test_length",)
    assert not broken.is_usable


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"files": None}, "files"),
        ({"files": {"../x": ""}}, "files"),
        ({"fail_to_pass": []}, "fail_to_pass"),
        ({"fail_to_pass": "what"}, "fail_to_pass"),
        ({"fail_to_pass": ["tests/none.py::test_x"]}, "none.py"),
    ],
)
def test_unusable_row_is_named(change, expected):
    with pytest.raises(DataError, match=expected), Episode(FilesAndShell(), ROW | change, "/nowhere"):
        pass


@pytest.mark.parametrize("archive", [b"", b"garbage" * 100, b"\0" * 10240])
def test_archive_of_garbage_is_no_file(archive):
    assert not unpacked(archive)
