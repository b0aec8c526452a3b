"""What is counted on disk, and removed, in folders full of traps; what is told of processes that hide."""

import mmap
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf.sandbox import files, storage
from rlhf.sandbox.tree import ProcessTree, buffers_mb, children

MB = 1 << 20


def used_mb(folder: Path) -> float:
    tree = ProcessTree(os.getpid())
    return storage.disk_use(str(folder), tree, tree.open_files(), file_mb=4)


@contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """A forked process, without this one's files, that does some work and then waits to be killed with its own."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            told = os.dup2(told, 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            work()
            os.write(told, b"x")
            time.sleep(600)
        finally:
            os._exit(0)
    try:
        assert os.read(ready, 1) == b"x"
        yield pid
    finally:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)


def test_files_and_folders_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(bytes(2 * MB))
    os.link(tmp_path / "a/b/file", tmp_path / "second-name")
    (tmp_path / "link").symlink_to("/usr")
    assert 2 <= used_mb(tmp_path) < 2.2


def test_an_open_folder_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(bytes(2 * MB))

    with child(lambda: os.open(tmp_path / "d", os.O_RDONLY)):
        assert used_mb(tmp_path) >= 2


@pytest.mark.parametrize("is_mapped", [False, True])
def test_files_without_a_name_are_counted(tmp_path: Path, is_mapped: bool) -> None:
    def hold() -> None:
        with open(tmp_path / "file", "w+b") as file:
            file.write(bytes(3 * MB))
            file.flush()
            os.unlink(file.name)
            kept.append(mmap.mmap(file.fileno(), 4096) if is_mapped else os.dup(file.fileno()))

    kept: list[object] = []
    with child(hold):
        assert 3 <= used_mb(tmp_path) < (4.5 if is_mapped else 3.5)


def test_too_deep_too_many_and_closed_folders_are_infinite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "deep"
    here.mkdir()
    folder = os.open(here, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d" * 100, dir_fd=folder)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    assert used_mb(tmp_path) == float("inf")
    storage.remove(str(here))
    assert not here.exists()
    monkeypatch.setattr(storage, "MAX_FILES", 10)
    for number in range(12):
        (tmp_path / str(number)).touch()
    assert used_mb(tmp_path) == float("inf")


def test_folders_are_removed_whatever_their_modes_and_names(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    for name in ("-rf", "new\nline", os.fsdecode(b"\xff"), "a b"):
        (tmp_path / "top" / name / "below").mkdir(parents=True)
        (tmp_path / "top" / name / "link").symlink_to(outside)
        (tmp_path / "top" / name / "below").chmod(0)
        (tmp_path / "top" / name).chmod(stat.S_IXUSR)
    storage.remove(str(tmp_path / "top"))
    storage.remove(str(tmp_path / "top"))
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (outside / "kept").exists()


@pytest.mark.parametrize("number", ["KILL", "STOP"])
def test_folder_goes_though_what_removes_it_is_killed_or_stopped(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, folder = tmp_path / "rm", tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\n[ -e "$0.once" ] || {{ : > "$0.once"; kill -{number} $$; }}\nexec /bin/rm "$@"\n',
        encoding="utf-8",
    )
    program.chmod(0o700)
    monkeypatch.setattr(storage, "_program", lambda name: str(tmp_path / name))
    monkeypatch.setattr(os, "getuid", lambda: 0)
    storage.remove(str(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rm", "rm.once"]


def test_folder_that_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, folder = tmp_path / "rm", tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    program.write_text("#!/bin/sh\nkill -KILL $$\n", encoding="utf-8")
    program.chmod(0o700)
    monkeypatch.setattr(storage, "_program", lambda name: str(tmp_path / name))
    monkeypatch.setattr(storage, "_TRIES", 3)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(OSError, match=rf"rm -rf -- {folder} was killed 3 times"):
        storage.remove(str(folder))


def test_second_name_of_anothers_file_is_not_given_away(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    os.link(tmp_path / "secret", tmp_path / "mine")
    assert files.collect(str(tmp_path), ["mine"], 1000, owner=os.getuid()) == {"mine": b"secret"}
    assert files.collect(str(tmp_path), ["mine"], 1000, owner=os.getuid() + 1) == {}


def test_what_cannot_be_put_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken/inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to("/tmp")
    assert "taken" in files.put(str(tmp_path), {"taken": b"x"})
    assert files.put(str(tmp_path), {"link/x": b"x"})
    assert files.put(str(tmp_path), {"link": b"x", "new/folder/x": b"x"}) == ""
    assert (tmp_path / "link").read_bytes() == b"x"


_DEAD_LEADER = """
import ctypes, os, sys, threading, time
def work():
    x = bytearray(b"x") * (50 << 20)
    print("ready", flush=True)
    time.sleep(600)
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""


def test_memory_of_a_process_whose_first_thread_is_gone_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", _DEAD_LEADER], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        tree = ProcessTree(os.getpid())
        deadline = time.monotonic() + 60
        try:
            while (found := tree._processes()[process.pid]).tasks != 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert (found.tasks, found.rss_mb > 50, tree.proportional_mb() > 50) == (1, True, True)
        finally:
            process.kill()


def test_a_number_given_again_is_another_process() -> None:
    tree = ProcessTree(os.getpid())
    with child(lambda: None) as pid:
        assert pid in tree.pids()
        tree._ours[pid] -= 1
        tree._foreign.add(pid)
        assert pid not in tree.pids()
        assert children(os.getpid()) >= {pid}


def test_pipes_and_sockets_count_as_memory_once() -> None:
    def hold() -> None:
        kept = [os.pipe() for _ in range(16)]
        for _ in range(2):
            if os.fork() == 0:
                time.sleep(600 * len(kept))

    with child(hold) as pid:
        assert 16 * 0.0625 <= buffers_mb(ProcessTree(pid).open_files()) < 2 * 16 * 0.0625


def test_waiting_of_polite_processes_does_not_count() -> None:
    def burn_politely() -> None:
        os.nice(19)
        for _ in range(3):
            if os.fork() == 0:
                deadline = time.monotonic() + 0.6
                while time.monotonic() < deadline:
                    pass
                os._exit(0)

    with child(burn_politely):
        tree = ProcessTree(os.getpid())
        before = tree.usage().waited_s
        time.sleep(0.5)
        assert tree.usage().waited_s - before < 0.3
