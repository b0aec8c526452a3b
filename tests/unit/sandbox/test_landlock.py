"""Files inside and outside of what Landlock grants, for every version of it that users' kernels have."""

from pathlib import Path

import pytest

from rlhf.sandbox import landlock
from tests.unit.sandbox.confined import confined

ABIS = [1, 2, 3, 4, 5, 6]
OUTSIDE = {
    "read": "open(outside + '/file')",
    "write": "open(outside + '/file', 'r+')",
    "append": "open(outside + '/file', 'a')",
    "list": "os.listdir(outside)",
    "create": "open(outside + '/new', 'x')",
    "make a folder": "os.mkdir(outside + '/folder')",
    "remove": "os.unlink(outside + '/file')",
    "remove a folder": "os.rmdir(outside + '/empty')",
    "make a link": "os.symlink('/', outside + '/link')",
    "make a pipe": "os.mkfifo(outside + '/pipe')",
    "rename": "os.rename(outside + '/file', outside + '/other')",
    "execute": "os.execv(outside + '/program', ['program'])",
    "bind a socket": "socket.socket(socket.AF_UNIX).bind(outside + '/socket')",
}
INSIDE = {
    "write": "open(inside + '/file', 'w').close()",
    "make and remove a folder": "(os.mkdir(inside + '/folder'), os.rmdir(inside + '/folder'))",
    "rename": "(open(inside + '/a', 'w').close(), os.rename(inside + '/a', inside + '/b'))",
    "make a link and a pipe": "(os.symlink('x', inside + '/l'), os.mkfifo(inside + '/p'))",
    "give a second name": "os.link(inside + '/b', inside + '/h')",
    "truncate": "os.truncate(inside + '/b', 1)",
    "list": "os.listdir(inside)",
    "read what may be read": "open(readable + '/file').read()",
}
BESIDE = "kernel.install_filter(seccomp.build_filter(seccomp.Rules(landlock_abi={abi}, own_pid={own_pid})))"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("inside", "outside", "readable"):
        (tmp_path / name).mkdir(mode=0o777)
        (tmp_path / name / "file").write_text("text")
    (tmp_path / "outside/empty").mkdir()
    (tmp_path / "outside/program").write_text("#!/bin/sh\n")
    (tmp_path / "outside/program").chmod(0o755)
    return tmp_path


def restricted(folder: Path, abi: int | None, code: str) -> list[str]:
    """Words that `code` prints after Landlock, as version `abi` knows it, was taken; none: without."""
    if not landlock.abi():
        pytest.skip("this kernel has no Landlock")
    version = min(abi or 0, landlock.abi())
    names = (
        f"inside, outside, readable = ({str(folder)!r} + n for n in ('/inside', '/outside', '/readable'))\n"
    )
    take = f"""
landlock.abi = lambda: {version}
landlock.restrict(readable=["/usr", "/lib", "/lib64", readable, "/absent"], writable=[inside])
"""
    return confined(names + (take if abi else "") + code)


def attempts(actions: dict[str, str]) -> str:
    lines = [f"sys.stdout.write(attempt(lambda: {action}) + ' ')" for action in actions.values()]
    return "\n".join(lines)


@pytest.mark.parametrize("abi", ABIS)
def test_nothing_outside_can_be_read_or_changed(folders, abi):
    words = restricted(folders, abi, attempts(OUTSIDE))
    assert dict(zip(OUTSIDE, words, strict=True)) == dict.fromkeys(OUTSIDE, "EACCES")
    assert {p.name for p in (folders / "outside").iterdir()} == {"file", "empty", "program"}


@pytest.mark.parametrize("abi", ABIS)
def test_everything_inside_can_be_done(folders, abi):
    words = restricted(folders, abi, attempts(INSIDE))
    assert dict(zip(INSIDE, words, strict=True)) == dict.fromkeys(INSIDE, "ok")


@pytest.mark.parametrize("abi", ABIS)
def test_what_may_be_read_cannot_be_changed(folders, abi):
    names = ("write", "append", "create", "make a folder", "remove", "rename")
    actions = {name: OUTSIDE[name].replace("outside", "readable") for name in names}
    assert set(restricted(folders, abi, attempts(actions))) == {"EACCES"}


@pytest.mark.parametrize("abi", ABIS)
def test_filter_holds_what_this_version_does_not_see(folders, abi):
    code = """
sys.stdout.write(attempt(lambda: os.truncate(outside + "/file", 0)) + " ")
sys.stdout.write(attempt(lambda: os.open(readable + "/file", os.O_RDONLY | os.O_TRUNC)) + " ")
sys.stdout.write(attempt(lambda: os.kill(os.getppid(), 0)))
"""
    alone = restricted(folders, abi, code)
    assert [word == "ok" for word in alone] == [abi < 3, abi < 3, abi < landlock.SCOPED_SIGNALS]
    own_pid = "os.getpid()" if abi < landlock.SCOPED_SIGNALS else None
    (folders / "outside/file").write_text("text")
    (folders / "readable/file").write_text("text")
    assert "ok" not in restricted(folders, abi, BESIDE.format(abi=abi, own_pid=own_pid) + code)
    assert (folders / "outside/file").read_text() == "text"
    assert (folders / "readable/file").read_text() == "text"


def test_without_landlock_all_of_it_would_work(folders):
    actions = {name: action for name, action in OUTSIDE.items() if name != "execute"}
    assert set(restricted(folders, None, attempts(actions))) <= {"ok", "ENOENT"}


def test_tcp_is_held_from_its_fourth_version_on(folders):
    code = "sys.stdout.write(attempt(lambda: socket.socket().connect(('127.0.0.1', 9))))"
    assert restricted(folders, 3, code) == ["ECONNREFUSED"]
    assert restricted(folders, 4, code) == ["EACCES"]


def test_version_says_what_it_lacks():
    assert landlock.lacking(6) == ()
    assert len(landlock.lacking(1)) > len(landlock.lacking(3)) > len(landlock.lacking(5)) == 1
    assert "TCP" in landlock.lacking(3)
