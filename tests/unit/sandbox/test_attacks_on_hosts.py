"""The same attacks where the sandbox has no rights: ordinary accounts, and pods and containers that allow little."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from rlhf.sandbox.execution import Limits
from tests.unit.sandbox.hosts import DOCKER, POD, UID, Host, on, why_not_here
from tests.unit.sandbox.leftovers import mounts, scratch_folders
from tests.unit.sandbox.test_attacks_at_once import AT_ONCE, ATTACKS, TIGHT

HOSTS = {"ordinary user": Host(uid=UID), "restricted pod": POD, "root in Docker's profile": DOCKER}
FIGHT = """
def attack(name):
    code, limits = ATTACKS[name]
    code = code.replace("CLIENT", str(os.getpid())).replace("LAUNCHER", str(launcher))
    done = sandbox.run(Program(code=code), limits=Limits(**limits))
    output, errors = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    return [done.status, output, errors, done.wall_s, done.detail]
with Sandbox() as sandbox, ThreadPoolExecutor(AT_ONCE) as pool:
    tier, launcher = sandbox.tier, sandbox._launcher.pid
    ends = dict(zip(ATTACKS, pool.map(attack, ATTACKS)))
    answer = [ends, sandbox._launcher.pid == launcher]
"""
_fights: dict[str, Any] = {}


@pytest.fixture(params=HOSTS)
def fight(request: pytest.FixtureRequest) -> Any:
    host = HOSTS[request.param]
    if why_not_here(host):
        pytest.skip(why_not_here(host))
    if request.param not in _fights:
        before = mounts()
        with tempfile.TemporaryDirectory(prefix="host-") as name:
            Path(name).chmod(0o755)
            given = {name: [each.code, {**TIGHT, **each.limits}] for name, each in ATTACKS.items()}
            answer = on(host, FIGHT, Path(name), ATTACKS=given, AT_ONCE=AT_ONCE)
            left = list((Path(name) / "home").iterdir())
        _fights[request.param] = (*answer, left, (before, mounts()))
    return _fights[request.param]


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_stopped_where_the_sandbox_has_no_rights(fight: Any, name: str) -> None:
    status, output, errors, wall_s, detail = fight[0][name]
    assert "ESCAPED" not in output, (status, output, errors, detail)
    assert status in ATTACKS[name].verdicts, (status, output, errors, wall_s, detail)
    assert wall_s < Limits(**{**TIGHT, **ATTACKS[name].limits}).net_s + 10


def test_attacks_leave_nothing_where_the_sandbox_has_no_rights(fight: Any) -> None:
    _, is_same_launcher, left, (mounts_before, mounts_after) = fight
    assert is_same_launcher
    assert left == []
    assert mounts_before == mounts_after
    assert not scratch_folders(UID)
