"""Twelve attacks on every tier of this machine, in a second or two: what is stopped here and what is not."""

import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import SandboxError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import TIERS, Execution, Limits, Program, Tier
from rlhf.sandbox.policy import UNSAFE, Policy

_LIMITS = Limits(cpu_s=0.3, wall_s=2.0, memory_mb=200, processes=12, file_mb=4, disk_mb=8, output_kb=64)
ESCAPED = "ESCAPED"

# Each prints ESCAPED when it got what it wanted. {secret} is a file of the host, {victim} the client's process id.
ATTACKS: Mapping[str, str] = {
    "TCP to the host": """
import socket
s = socket.socket()
s.settimeout(0.2)
try: s.connect(("127.0.0.1", 9))
except ConnectionRefusedError: pass
print("ESCAPED")""",
    "UDP socket": """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
print("ESCAPED")""",
    "Unix socket": """
import socket
socket.socket(socket.AF_UNIX).bind(b"\\0escape-" + str(id(socket)).encode())
print("ESCAPED")""",
    "read a host file": """
print("ESCAPED" if open({secret!r}).read() else "")""",
    "write outside the scratch folder": """
open({secret!r} + ".new", "w").write("x")
print("ESCAPED")""",
    "signal a host process": """
import os
os.kill({victim}, 0)
print("ESCAPED")""",
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
time.sleep(0.2)
print("ESCAPED")""",
    "endless output": """
import os
for _ in range(10000): os.write(2, b"x" * 1000)
print("ESCAPED")""",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TierReport:
    """What a tier stopped; `unavailable` says why it cannot be had, and is empty where it can."""

    tier: Tier
    unavailable: str = ""
    stopped: tuple[str, ...] = ()
    escaped: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    """Attacks on which the sandbox itself gave no verdict."""


def examine_tiers() -> list[TierReport]:
    """Every tier with every attack, all tiers at once."""
    with ThreadPoolExecutor(len(TIERS)) as pool:
        return list(pool.map(examine, TIERS))


def examine(tier: Tier) -> TierReport:
    """One tier with every attack."""
    with (
        Sandbox(Policy(tier=tier, unsafe=UNSAFE)) as sandbox,
        tempfile.NamedTemporaryFile("w", prefix="secret-") as secret,
    ):
        secret.write("secret")
        secret.flush()
        # As a careless host would have it: other users may read it.
        os.chmod(secret.name, 0o644)
        try:
            results = {name: _attack(sandbox, code, secret.name) for name, code in ATTACKS.items()}
        except SandboxError as error:
            return TierReport(tier=tier, unavailable=str(error))
        Path(f"{secret.name}.new").unlink(missing_ok=True)
    broken = tuple(name for name, result in results.items() if result.status == "broken")
    escaped = tuple(name for name, result in results.items() if ESCAPED.encode() in result.stdout)
    stopped = tuple(name for name in results if name not in (*broken, *escaped))
    return TierReport(tier=tier, stopped=stopped, escaped=escaped, broken=broken)


def _attack(sandbox: Sandbox, code: str, secret: str) -> Execution:
    return sandbox.run(Program(code=code.format(secret=secret, victim=os.getpid())), limits=_LIMITS)
