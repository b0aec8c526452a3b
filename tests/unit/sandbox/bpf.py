"""A classic BPF machine as the kernel runs it for seccomp: judges a system call without making it."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MAX_INSTRUCTIONS = 4096
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD_WORD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMPS = {0x15: lambda a, k: a == k, 0x35: lambda a, k: a >= k, 0x25: lambda a, k: a > k}


@dataclass(frozen=True, slots=True)
class Call:
    """What the kernel shows a filter: `struct seccomp_data`."""

    architecture: int
    number: int
    arguments: Sequence[int] = ()

    def pack(self) -> bytes:
        """In the layout of a little-endian machine."""
        filled = [value & (2**64 - 1) for value in (*self.arguments, *[0] * 6)][:6]
        return struct.pack("<IIQ6Q", self.number & 0xFFFFFFFF, self.architecture, 0, *filled)


def judge(program: bytes, call: Call) -> int:
    """The filter's verdict: ALLOW, KILL, or ERROR | errno. ValueError for a program that the kernel would refuse."""
    lines = list(struct.iter_unpack("<HBBI", program))
    if not 0 < len(lines) <= MAX_INSTRUCTIONS:
        raise ValueError(f"{len(lines)} instructions, the kernel takes 1 to {MAX_INSTRUCTIONS}")
    data, position, accumulator = call.pack(), 0, 0
    while position < len(lines):
        code, if_true, if_false, value = lines[position]
        position += 1
        if code == _RETURN:
            return value
        if code == _LOAD_WORD:
            if value % 4 or value > len(data) - 4:
                raise ValueError(f"load at offset {value}")
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == _AND:
            accumulator &= value
        elif code in _JUMPS:
            position += if_true if _JUMPS[code](accumulator, value) else if_false
        else:
            raise ValueError(f"instruction {code:#x}")
    raise ValueError("the program ends without a verdict")
