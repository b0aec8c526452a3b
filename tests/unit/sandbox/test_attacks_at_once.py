"""Attacks on what watches, counts and clears up, all at once in one sandbox, while honest programs run beside them."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import TIERS, Execution, Limits, Program, Tier
from tests.unit.sandbox.attacks import Attack
from tests.unit.sandbox.attacks_calls import CALLS
from tests.unit.sandbox.attacks_files import FILES, OUTPUT
from tests.unit.sandbox.attacks_hidden import MEMORY, PROCESSOR
from tests.unit.sandbox.attacks_inside import HERITAGE, WATCHERS
from tests.unit.sandbox.leftovers import launcher_pid, left_by, mounts, scratch_folders

ATTACKS = {**WATCHERS, **HERITAGE, **PROCESSOR, **MEMORY, **FILES, **OUTPUT, **CALLS}
TIGHT = {
    "cpu_s": 0.3,
    "wall_s": 2.5,
    "memory_mb": 200,
    "processes": 10,
    "file_mb": 4,
    "disk_mb": 8,
    "output_kb": 64,
    "open_files": 100,
}
AT_ONCE = 6
NOT_ALLOWED = frozenset({"exited", "signalled", "wall_limit"})
"""How a program ends in a tier that does not let it write or start processes."""


@dataclass(frozen=True)
class Fight:
    ends: dict[str, Execution]
    honest: list[Execution]
    left: list[str]
    mounts: tuple[int, int]


_fights: dict[Tier, Fight] = {}


@pytest.fixture(scope="session")
def host() -> Iterator[Path]:
    """A folder that every user of the host can reach, with a file to read and a folder to write to."""
    with tempfile.TemporaryDirectory(prefix="attacked-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "secret").write_text("secret")
        (folder / "open").mkdir()
        (folder / "open").chmod(0o777)
        yield folder


@pytest.fixture
def fight(sandbox: Sandbox, host: Path) -> Fight:
    """The end of every attack in a tier; they run once, at the first question."""
    if sandbox.tier not in _fights:
        names = {"CLIENT": os.getpid(), "LAUNCHER": launcher_pid(sandbox)}
        names |= {"SECRET": host / "secret", "OPEN": host / "open"}

        def attack(attack: Attack) -> Execution:
            code = attack.code
            for name, value in names.items():
                code = code.replace(name, str(value))
            return sandbox.run(Program(code=code), limits=Limits(**{**TIGHT, **attack.limits}))

        def be_honest(number: int) -> Execution:
            code = f"import sys\nprint(sum(range({number})), len(sys.stdin.read()))\nopen('o', 'w').write('{number}')"
            if sandbox.tier == "read-only":
                code = code.partition("\nopen")[0]
            return sandbox.run(Program(code=code, stdin=b"x" * number, collect=("o",)))

        before = mounts()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            honest = [pool.submit(be_honest, number) for number in range(len(ATTACKS) // 4)]
            ends = {name: pool.submit(attack, each) for name, each in ATTACKS.items()}
            honest += [pool.submit(be_honest, number) for number in range(len(ATTACKS) // 4)]
        _fights[sandbox.tier] = Fight(
            {name: end.result() for name, end in ends.items()},
            [each.result() for each in honest],
            left_by(sandbox),
            (before, mounts()),
        )
    return _fights[sandbox.tier]


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_stopped_and_named(fight: Fight, name: str) -> None:
    attack, end = ATTACKS[name], fight.ends[name]
    if end.tier in attack.works_in:
        pytest.skip(f"{end.tier}: not promised ({attack.why})")
    assert b"ESCAPED" not in end.stdout, end
    assert end.status in attack.verdicts | (NOT_ALLOWED if end.tier == "read-only" else set()), end
    assert end.wall_s < Limits(**{**TIGHT, **attack.limits}).net_s + 10, end


def test_honest_programs_beside_attacks_are_right(fight: Fight) -> None:
    half = len(fight.honest) // 2
    for number, end in zip([*range(half)] * 2, fight.honest, strict=True):
        assert end.stdout == b"%d %d\n" % (sum(range(number)), number), end
        assert end.files == ({} if end.tier == "read-only" else {"o": b"%d" % number})


def test_attacks_leave_nothing(fight: Fight, sandbox: Sandbox) -> None:
    assert fight.left == []
    assert fight.mounts[0] == fight.mounts[1]
    assert sandbox.run(Program(code="print('still here')")).stdout == b"still here\n"


def test_every_attack_has_a_reason() -> None:
    parts = (WATCHERS, HERITAGE, PROCESSOR, MEMORY, FILES, OUTPUT, CALLS)
    assert len(ATTACKS) == sum(map(len, parts)) >= 60
    assert all(attack.why and attack.works_in.isdisjoint(TIERS[:2]) for attack in ATTACKS.values())
    assert not scratch_folders(os.getpid())
