"""A process group ends with whoever holds the other end of its pipe, also when that one was gone first."""

import os
import signal
import subprocess
import sys

import pytest

LIVES = """
import sys, time
from rlhf.lifeline import tie_life_to
tie_life_to(int(sys.argv[1]))
print("tied", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("is_gone_before", [True, False])
def test_process_ends_with_the_other_end_of_its_pipe(is_gone_before):
    reading, writing = os.pipe()
    if is_gone_before:
        os.close(writing)
    process = subprocess.Popen(
        [sys.executable, "-c", LIVES, str(reading)],
        pass_fds=(reading,),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(reading)
    try:
        if not is_gone_before:
            assert process.stdout is not None
            assert process.stdout.readline() == b"tied\n"
            os.close(writing)
        assert process.wait(60) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()
