"""What an attack on the sandbox is: a program, why somebody would write it, and the verdicts that are right."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf.sandbox.execution import Tier

LIBC = """
import ctypes, errno, os, signal, socket, threading, time
libc = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == "x86_64"
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def mapped(size, flags, fd=-1, rights=3):
    address = libc.mmap(None, size, rights, flags, fd, 0)
    if address == ctypes.c_void_p(-1).value: raise OSError(ctypes.get_errno(), "mmap")
    return address
def system(number_x86, number_arm, *arguments):
    return libc.syscall(ctypes.c_long(number_x86 if x86 else number_arm), *arguments)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A program that prints ESCAPED if it got what it wanted.

    SECRET, OPEN, CLIENT and LAUNCHER in its code are put in: a file and a folder of the host that every user may read
    and write, and two process ids.
    """

    why: str
    code: str
    verdicts: frozenset[str] = frozenset({"exited"})
    limits: Mapping[str, Any] = field(default_factory=dict)
    works_in: frozenset[Tier] = frozenset()
    """Tiers below the isolating ones that do not promise to stop it."""


def escapes_if(condition: str) -> str:
    """Code that tells whether it got what it wanted."""
    return f'\nif {condition}: print("ESCAPED")\n'
