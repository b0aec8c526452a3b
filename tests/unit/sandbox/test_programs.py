"""What people and agents write runs where files and network are isolated."""

import shutil

import pytest

from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Limits, Program
from rlhf.sandbox.policy import ISOLATED
from tests.unit.sandbox import programs

LIMITS = Limits(cpu_s=10, wall_s=120, memory_mb=1024, processes=32)


isolating = pytest.mark.parametrize("sandbox", ISOLATED, indirect=True)


def check(sandbox: Sandbox, program: Program) -> None:
    execution = sandbox.run(program, limits=LIMITS)
    assert execution.stdout.split()[-1:] == [b"works"], execution


@isolating
@pytest.mark.parametrize("name", programs.PYTHON)
def test_python_program_works(sandbox, name):
    if name == "pool of processes" and sandbox.tier == "landlock":
        pytest.skip("landlock: locks between processes lie in the host's /dev/shm, which stays closed")
    check(sandbox, Program(code=programs.PYTHON[name]))


@isolating
def test_numpy_works_in_a_fork_and_in_an_interpreter_of_its_own(sandbox):
    check(sandbox, Program(code=programs.NUMPY))


@isolating
@pytest.mark.parametrize("name", programs.SHELL)
def test_shell_works(sandbox, name):
    check(sandbox, Program(argv=("sh", "-ec", programs.SHELL[name])))


@isolating
def test_compiled_program_works(sandbox):
    if not shutil.which("gcc"):
        pytest.skip("no C compiler is installed")
    program = Program(argv=("sh", "-ec", programs.COMPILED), files={"main.c": programs.C.encode()})
    check(sandbox, program)


@isolating
def test_node_works(sandbox):
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    program = Program(argv=("node", "-e", programs.NODE), limits_address_space=False)
    check(sandbox, program)
