"""What a programming task is tested with: the `tests` column of a prompt, checked and unpacked.

A column is a mapping with `kind` and the fields of one of the three kinds below, and any of `language`,
`hardest`, `cpu_s`, `memory_mb`. Long ones are packed by the readers in `rewards.code_readers`.
"""

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.errors import DataError

PACK_ABOVE_CHARACTERS = 20_000
MAX_UNPACKED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioTests:
    """Programs that read standard input and write standard output."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compare: Literal["lines", "tokens"] = "lines"
    tolerance: float | None = None

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTests:
    """Calls of one function, or of that method of `class Solution`; arguments and results are JSON values."""

    fn_name: str
    inputs: tuple[Sequence[Any], ...]
    """The positional arguments of each call."""
    outputs: tuple[Any, ...]
    setup: str = ""
    """Code that runs before the solution, in its process (imports it may take for granted)."""
    tolerance: float | None = None
    unwraps: bool = False
    """Whether an expected list of one value also accepts the value, as the graders of APPS and TACO do."""

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssertTests:
    """Test code with asserts that calls functions of the solution."""

    tests: tuple[str, ...]
    entry_points: tuple[str, ...]
    """The functions of the solution that the tests call."""
    setup: str = ""
    """Code that runs before the tests and, in its own process, before the solution."""
    is_weak: bool = False
    """Values of these tests cannot leave the solution's process, so the tests must run inside it."""

    def __len__(self) -> int:
        return len(self.tests)


Tests = StdioTests | FunctionTests | AssertTests
_KINDS: dict[str, Callable[..., Tests]] = {
    "stdio": StdioTests,
    "function": FunctionTests,
    "asserts": AssertTests,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The tests of one prompt and what holds for all of them."""

    tests: Tests
    language: str | None = None
    """None: any that the reward allows."""
    hardest: tuple[int, ...] = ()
    """Numbers (from 0) of the tests that most attempts fail: never sampled away, run first."""
    cpu_s: float | None = None
    """CPU seconds per test as the task states them, for a compiled language."""
    memory_mb: float | None = None


def parse_record(column: Any) -> Record:
    """The record in a `tests` column (a mapping, or its JSON text). DataError names the field at fault."""
    fields = _mapping(column)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise DataError(f"tests.kind is {kind!r}, expected one of {', '.join(_KINDS)}.")
    common = {name: fields.pop(name) for name in ("language", "cpu_s", "memory_mb") if name in fields}
    for name in ("cpu_s", "memory_mb"):
        if not isinstance(common.get(name, 1), int | float) or not common.get(name, 1) > 0:
            raise DataError(f"tests.{name} is {common[name]!r}, expected a number above 0.")
    hardest = tuple(fields.pop("hardest", ()))
    tests = _tests(_KINDS[kind], fields)
    if len(tests) == 0:
        raise DataError(f"tests of kind {kind} are empty: nothing would be tested. Leave the row out.")
    if not all(type(number) is int and 0 <= number < len(tests) for number in hardest):
        raise DataError(
            f"tests.hardest is {list(hardest)!r:.80}, expected numbers from 0 to {len(tests) - 1}."
        )
    if kind != "stdio" and common.get("language") not in (None, "python"):
        raise DataError(
            f"tests of kind {kind} in {common['language']!r}: only stdio tests know languages but python."
        )
    return Record(tests=tests, hardest=hardest, **common)


def _mapping(column: Any) -> dict[str, Any]:
    if isinstance(column, str):
        try:
            column = json.loads(column)
        except ValueError as error:
            raise DataError(f"the tests column is text but not JSON ({error}): {column[:80]!r}.") from error
    if not isinstance(column, Mapping):
        raise DataError(f"the tests column is a {type(column).__name__}, expected a mapping with `kind`.")
    fields = dict(column)
    if "packed" in fields:
        fields |= json.loads(inflate(b64decode(fields.pop("packed"))))
    return fields


def _tests(kind: Callable[..., Tests], fields: Mapping[str, Any]) -> Tests:
    try:
        tests = kind(
            **{n: tuple(v) if isinstance(v, list) else v for n, v in fields.items() if v is not None}
        )
    except TypeError as error:
        raise DataError(f"tests: {error}; found the fields {sorted(fields)}.") from error
    texts = {name: getattr(tests, name) for name in ("inputs", "outputs", "tests") if name in fields}
    for name, values in texts.items():
        is_text = name == "tests" or kind is StdioTests
        if not isinstance(values, tuple) or (is_text and not all(isinstance(v, str) for v in values)):
            raise DataError(
                f"tests.{name} is {values!r:.80}, expected a list of {'texts' if is_text else 'values'}."
            )
    if "outputs" in texts and len(texts["inputs"]) != len(texts["outputs"]):
        raise DataError(f"tests: {len(texts['inputs'])} inputs but {len(texts['outputs'])} outputs.")
    if isinstance(tests, FunctionTests) and not all(isinstance(call, list | tuple) for call in tests.inputs):
        raise DataError("tests.inputs of kind function: expected one list of positional arguments per call.")
    return tests


def pack(column: Mapping[str, Any]) -> dict[str, Any]:
    """The same column, its fields but `kind` compressed when they are long."""
    fields = {name: value for name, value in column.items() if name != "kind"}
    text = json.dumps(fields)
    if len(text) <= PACK_ABOVE_CHARACTERS:
        return dict(column)
    return {"kind": column["kind"], "packed": b64encode(zlib.compress(text.encode(), 6)).decode()}


def inflate(compressed: bytes) -> bytes:
    """Decompressed bytes; DataError above 1 GB or when they are no zlib stream."""
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(compressed, MAX_UNPACKED_BYTES)
    except zlib.error as error:
        raise DataError(f"packed tests are no zlib stream: {error}.") from error
    if not stream.eof:
        raise DataError("packed tests are cut off, or larger than 1 GB.")
    return inflated
