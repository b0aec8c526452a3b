"""Traps in the scratch folder for whoever brings files in and out: no link is followed, whenever it was set."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Limits, Program
from rlhf.sandbox.policy import ISOLATED
from rlhf.sandbox.session import Session

SECRET = b"a secret of the host"
SMALL = Limits(cpu_s=10.0, wall_s=60.0, memory_mb=256, processes=10, file_mb=4, disk_mb=16)
FLIP = """
import os
os.mkdir("d")
open("d/out", "w").write("mine")
os.symlink(TARGET, "link")
os.symlink(TARGET + "/secret", "file-link")
print("ready", flush=True)
if os.fork() == 0:
    for stream in range(3): os.close(stream)
    while True:
        os.rename("d", "aside")
        os.symlink(TARGET, "d")
        os.unlink("d")
        os.rename("aside", "d")
"""


@pytest.fixture
def host() -> Iterator[Path]:
    """A folder that every user may read and write, with a secret."""
    with tempfile.TemporaryDirectory(prefix="trapped-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "secret").write_bytes(SECRET)
        (folder / "out").write_bytes(SECRET)
        yield folder


pytestmark = pytest.mark.parametrize("sandbox", ISOLATED, indirect=True)


@pytest.mark.parametrize(
    "trap",
    [
        "os.symlink(target + '/secret', 'out')",
        "os.symlink(target, 'd')",
        "os.symlink('.', 'd'); open('out', 'w').write('mine')",
        "os.mkdir('out')",
        "os.mkfifo('out')",
        "os.symlink('/proc/self/environ', 'out')",
        "os.symlink('/proc/1/environ', 'out')",
        "os.symlink('/dev/zero', 'out')",
        "os.symlink('out', 'out')",
        "open('out', 'wb').truncate(5 << 20)",
        "os.link(target + '/secret', 'out')",
        "import socket; socket.socket(socket.AF_UNIX).bind('out')",
        "os.mkdir('d'); open('d/out', 'w').write('x'); os.chmod('d', 0)",
    ],
)
def test_collect_brings_back_what_the_program_wrote_and_nothing_else(
    sandbox: Sandbox, host: Path, trap: str
) -> None:
    code = f"import os\ntarget = {str(host)!r}\ntry:\n    {trap}\nexcept OSError: pass"
    program = Program(code=code, collect=("out", "d/out", "d/secret", "d/d/out"))
    execution = sandbox.run(program, limits=SMALL)
    assert execution.status in ("exited", "disk_limit", "signalled"), execution
    assert SECRET not in b"".join(execution.files.values())
    assert all(content in (b"mine", b"x", b"") for content in execution.files.values()), execution


def test_collected_files_share_one_limit(sandbox: Sandbox) -> None:
    code = "for i in range(4): open(str(i), 'wb').write(bytes(3 << 20))"
    execution = sandbox.run(Program(code=code, collect=("0", "1", "2")), limits=SMALL)
    assert sum(map(len, execution.files.values())) <= SMALL.file_mb << 20


def test_reads_and_writes_of_a_session_do_not_follow_links_that_come_and_go(
    sandbox: Sandbox, host: Path
) -> None:
    with Session(sandbox, "python", limits=SMALL) as session:
        step = session.exec(FLIP.replace("TARGET", repr(str(host))))
        assert b"ready" in step.stdout, step
        end, read, written = time.monotonic() + 1.0, 0, 0
        while time.monotonic() < end or not read + written:
            assert time.monotonic() < end + 60
            try:
                assert session.read("d/out") in (b"mine", b"new")
                read += 1
            except FileNotFoundError:
                pass
            try:
                session.write({"d/out": b"new", "d/more/deep": b"new"})
                written += 1
            except OSError:
                pass
        with pytest.raises(FileNotFoundError):
            session.read("file-link")
        session.write({"file-link": b"a file in its place"})
    assert sorted(path.name for path in host.iterdir()) == ["out", "secret"]
    assert {path.read_bytes() for path in host.iterdir()} == {SECRET}
    assert read + written > 0


def test_full_disk_and_folders_in_the_way_are_told(sandbox: Sandbox) -> None:
    with Session(sandbox, limits=SMALL) as session:
        session.exec("mkdir -p taken/inside; mkfifo pipe")
        with pytest.raises(OSError, match="taken"):
            session.write({"taken": b"x"})
        session.write({"pipe": b"no longer a pipe"})
        assert session.read("pipe") == b"no longer a pipe"
        if sandbox.tier == "namespaces":
            with pytest.raises(OSError, match="space"):
                session.write({"large": bytes(17 << 20)})
        assert session.exec("rm -rf taken large; echo on").stdout == b"on\n"


def test_read_waits_for_no_pipe_and_no_lease(sandbox: Sandbox) -> None:
    code = """
import fcntl, os
os.mkfifo("pipe")
f = os.open("leased", os.O_RDWR | os.O_CREAT)
try: fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)
except OSError: pass
"""
    with Session(sandbox, "python", limits=SMALL) as session:
        session.exec(code)
        began = time.monotonic()
        for name in ("pipe", "leased"):
            try:
                session.read(name)
            except FileNotFoundError:
                continue
        session.write({"leased": b"x"})
        # The kernel breaks a lease after 45 s, and a pipe that nobody writes to opens never.
        assert time.monotonic() - began < 30
