"""Twelve attacks on every tier of this machine, in a second or two: what is stopped here and what is not."""

import contextlib
import os
import select
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import SandboxError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import TIERS, Execution, Limits, Program, Tier
from rlhf.sandbox.policy import UNSAFE, Policy

_LIMITS = Limits(cpu_s=0.3, wall_s=2.0, memory_mb=200, processes=12, file_mb=4, disk_mb=8, output_kb=64)
ESCAPED = "ESCAPED"

# Most print ESCAPED when they got what they wanted; for the others it is seen on the host.
ATTACKS: Mapping[str, str] = {
    "TCP to the host": """
import socket
socket.create_connection(("127.0.0.1", {tcp}), 1)""",
    "UDP to the host": """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {udp}))""",
    "Unix socket of the host": """
import socket
socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", {unix!r})""",
    "read a host file": """
print("ESCAPED" if open({secret!r}).read() else "")""",
    "write outside the scratch folder": """
open({secret!r} + ".new", "w").write("x")""",
    "signal a host process": """
import os
os.kill({victim}, 15)""",
    "list host processes": """
import os
seen = [p for p in os.listdir("/proc") if p.isdigit() and int(p) > 2 and p != str(os.getpid())]
print("ESCAPED" if seen else "")""",
    "new user namespace": """
import ctypes
print("ESCAPED" if ctypes.CDLL(None).unshare(0x10000000) == 0 else "")""",
    "400 processes": """
import os, time
for _ in range(400):
    if os.fork() == 0:
        time.sleep(1)
        os._exit(0)
print("ESCAPED")""",
    "3 GB of memory": """
x = bytearray(3 << 30)
print("ESCAPED")""",
    "100 MB in 50 files": """
for i in range(50):
    with open(f"f{{i}}", "wb") as f: f.write(b"x" * (2 << 20))
import time
time.sleep(1)
print("ESCAPED")""",
    "endless output": """
import os
for _ in range(10000): os.write(2, b"x" * 1000)
print("ESCAPED")""",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TierReport:
    """What a tier stopped; `unavailable` says in a few words why it cannot be had, and is empty where it can."""

    tier: Tier
    unavailable: str = ""
    stopped: tuple[str, ...] = ()
    escaped: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    """Attacks on which the sandbox itself gave no verdict."""


def examine_tiers(*, python: str = "") -> list[TierReport]:
    """Every tier with every attack, all tiers at once; `python` as in the policy."""
    with ThreadPoolExecutor(len(TIERS)) as pool:
        return list(pool.map(lambda tier: examine(tier, python=python), TIERS))


def examine(tier: Tier, *, python: str = "", without: Sequence[str] = ()) -> TierReport:
    """One tier with every attack; `without` leaves mechanisms out, for tests."""
    policy = Policy(tier=tier, unsafe=UNSAFE, python=python)
    with Sandbox(policy, without=without) as sandbox, _targets() as targets:
        try:
            results = {name: _attack(sandbox, targets, code) for name, code in ATTACKS.items()}
        except SandboxError:
            return TierReport(tier=tier, unavailable=sandbox.unavailable[tier])
        hit = targets.hit()
    broken = tuple(name for name, result in results.items() if result.status == "broken")
    told = [name for name, result in results.items() if ESCAPED.encode() in result.stdout]
    escaped = tuple(name for name in results if name in (*hit, *told))
    stopped = tuple(name for name in results if name not in (*broken, *escaped))
    return TierReport(tier=tier, stopped=stopped, escaped=escaped, broken=broken)


@dataclass(frozen=True, slots=True)
class _Targets:
    """What attacks aim at."""

    secret: Path
    victim: subprocess.Popen[bytes]
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket

    def hit(self) -> list[str]:
        """The attacks of which something is seen here."""
        seen = {
            "TCP to the host": self.tcp,
            "UDP to the host": self.udp,
            "Unix socket of the host": self.unix,
        }
        reached = select.select(list(seen.values()), [], [], 0)[0]
        names = [name for name, target in seen.items() if target in reached]
        names += ["write outside the scratch folder"] if self.written.exists() else []
        return names + (["signal a host process"] if self.victim.poll() is not None else [])

    @property
    def written(self) -> Path:
        """The file that an attack would leave."""
        return self.secret.with_name(f"{self.secret.name}.new")


@contextlib.contextmanager
def _targets() -> Iterator[_Targets]:
    with contextlib.ExitStack() as stack:
        secret = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="secret-"))
        secret.write("secret")
        secret.flush()
        # As a careless host would have it: other users may read it.
        os.chmod(secret.name, 0o644)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        unix.bind(f"\0{secret.name}")
        victim = stack.enter_context(subprocess.Popen(["sleep", "60"]))
        stack.callback(victim.kill)
        targets = _Targets(Path(secret.name), victim, tcp, udp, unix)
        stack.callback(targets.written.unlink, missing_ok=True)
        yield targets


def _attack(sandbox: Sandbox, targets: _Targets, code: str) -> Execution:
    text = code.format(
        secret=str(targets.secret),
        victim=targets.victim.pid,
        tcp=targets.tcp.getsockname()[1],
        udp=targets.udp.getsockname()[1],
        unix=targets.unix.getsockname(),
    )
    return sandbox.run(Program(code=text), limits=_LIMITS)
