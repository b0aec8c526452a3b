"""Plain values as tagged data, and the frames that carry them between the grader and a sandbox.

Both ends use this module (its text is sent into the sandbox): standard library only. What arrives is data
of the types in `encode` and nothing else: no object of the other side, no method of it, can cross.
"""

import json
import math
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 64
MAX_FRAME_BYTES = 64 << 20
MAX_REPLY_BYTES = 4 << 20
"""Of what a program may answer: the grader holds it in memory."""
_EXACT_INTEGER = 1 << 53
_SINGLES = (type(None), bool, str)


class WireError(ValueError):
    """A frame or a value that breaks the rules: too large, too deep, of another type, not a message."""


class UnsendableError(WireError):
    """A value of a type that does not cross; the text is the type's name."""


def encode(value: Any, depth: int = 0) -> Any:
    """The JSON form of a plain value, by its exact type: a subclass of int is not an int here.

    None, bool, str and finite numbers are themselves; all else is a list `[tag, ...]`.
    """
    if depth > MAX_DEPTH:
        raise WireError(f"a value nested more than {MAX_DEPTH} deep")
    kind = type(value)
    if kind in _SINGLES:
        return value
    if kind is int:
        return value if -_EXACT_INTEGER < value < _EXACT_INTEGER else ["int", hex(value)]
    if kind is float:
        return value if math.isfinite(value) else ["float", repr(value)]
    if kind in _ENCODERS:
        return [kind.__name__, *_ENCODERS[kind](value)]
    if kind is type and value in _TYPES:
        return ["type", value.__name__]
    if kind in _SEQUENCES:
        return [kind.__name__, *(encode(item, depth + 1) for item in value)]
    if kind in _MAPPINGS:
        return [kind.__name__, *(encode(part, depth + 1) for item in value.items() for part in item)]
    raise UnsendableError(_name(kind))


def decode(tree: Any, depth: int = 0) -> Any:
    """The value of a JSON form. WireError for what `encode` cannot have made."""
    if depth > MAX_DEPTH:
        raise WireError(f"a value nested more than {MAX_DEPTH} deep")
    if type(tree) is not list:
        if type(tree) in (*_SINGLES, int, float):
            return tree
        raise WireError(f"a {type(tree).__name__} is no value")
    if not tree or type(tree[0]) is not str or tree[0] not in _DECODERS:
        raise WireError(f"no tag of a value: {str(tree[:1])[:80]}")
    tag, *parts = tree
    try:
        if tag in _NESTED:
            parts = [decode(part, depth + 1) for part in parts]
        return _DECODERS[tag](parts)
    except WireError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise WireError(f"not a {tag}: {type(error).__name__}") from error


def _name(kind: type) -> str:
    module = type.__getattribute__(kind, "__module__")
    name = type.__getattribute__(kind, "__qualname__")
    return str(name) if module == "builtins" else f"{module}.{name}"


def _pairs(parts: list[Any]) -> Iterable[tuple[Any, Any]]:
    if len(parts) % 2:
        raise WireError("a mapping with a key that has no value")
    return zip(parts[::2], parts[1::2], strict=True)


_SEQUENCES = (list, tuple, set, frozenset, deque)
_MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
_TYPES = (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, type(None))
"""Classes that cross, by name: tests pass them as arguments."""
_NESTED = frozenset(kind.__name__ for kind in (*_SEQUENCES, *_MAPPINGS))
_ENCODERS: dict[type, Callable[[Any], list[Any]]] = {
    bytes: lambda value: [b64encode(value).decode()],
    bytearray: lambda value: [b64encode(value).decode()],
    complex: lambda value: [repr(value.real), repr(value.imag)],
    range: lambda value: [hex(value.start), hex(value.stop), hex(value.step)],
    Decimal: lambda value: [str(value)],
    Fraction: lambda value: [hex(value.numerator), hex(value.denominator)],
    date: lambda value: [value.isoformat()],
    datetime: lambda value: [value.isoformat()],
    timedelta: lambda value: [value.days, value.seconds, value.microseconds],
}
_DECODERS: dict[str, Callable[[list[Any]], Any]] = {
    "int": lambda parts: int(parts[0], 16),
    "float": lambda parts: float(parts[0]),
    "bytes": lambda parts: b64decode(parts[0]),
    "bytearray": lambda parts: bytearray(b64decode(parts[0])),
    "complex": lambda parts: complex(float(parts[0]), float(parts[1])),
    "range": lambda parts: range(*(int(part, 16) for part in parts)),
    "Decimal": lambda parts: Decimal(parts[0]),
    "Fraction": lambda parts: Fraction(int(parts[0], 16), int(parts[1], 16)),
    "date": lambda parts: date.fromisoformat(parts[0]),
    "datetime": lambda parts: datetime.fromisoformat(parts[0]),
    "timedelta": lambda parts: timedelta(*parts),
    "type": lambda parts: {kind.__name__: kind for kind in _TYPES}[parts[0]],
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "dict": lambda parts: dict(_pairs(parts)),
    "OrderedDict": lambda parts: OrderedDict(_pairs(parts)),
    # Its factory stays behind: a default that a test reads would be the program's say.
    "defaultdict": lambda parts: defaultdict(None, _pairs(parts)),
    "Counter": lambda parts: Counter(dict(_pairs(parts))),
}


def frame(message: list[Any]) -> bytes:
    """The bytes of a message: its length in four bytes, then JSON."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"a message of {len(body)} bytes, at most {MAX_FRAME_BYTES} cross")
    return len(body).to_bytes(4, "big") + body


def receive(read: Callable[[int], bytes], *, limit: int = MAX_FRAME_BYTES) -> list[Any]:
    """The next message, a list that starts with its name; `read` gives up to so many bytes, none at the end.

    EOFError when the other side is gone, WireError for anything malformed or above `limit` bytes.
    """
    size = int.from_bytes(_exactly(read, 4), "big")
    if size > limit:
        raise WireError(f"a message of {size} bytes, at most {limit} cross")
    try:
        message = json.loads(_exactly(read, size))
    except (RecursionError, ValueError) as error:
        raise WireError("a frame that is no JSON") from error
    if type(message) is not list or not message or type(message[0]) is not str:
        raise WireError("a frame that is no message")
    return message


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = read(min(size - len(received), 1 << 20))
        if not chunk:
            raise EOFError("the other side closed the channel")
        received += chunk
    return bytes(received)
