"""What goes into the sandbox and what comes out: programs, limits, verdicts. Standard library only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Tier = Literal["namespaces", "landlock", "uid", "read-only"]
"""How a program is held, strongest first. The first two isolate network and files."""
TIERS: tuple[Tier, ...] = get_args(Tier)
Holder = Tier | Literal["remote"]
"""`remote`: a server (`sandbox.remote`), which holds programs in its own way."""

Status = Literal[
    "exited",
    "signalled",
    "cpu_limit",
    "wall_limit",
    "memory_limit",
    "output_limit",
    "disk_limit",
    "process_limit",
    "killed",
    "refused",
    "broken",
]
"""How a program ended. `killed`: its caller ended it. `refused`: it never started, and that is its caller's fault
(no such program, a file outside the scratch folder). `broken`: the sandbox failed; never a verdict on the program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program, with all its children, may use. Every one holds in every tier."""

    cpu_s: float = 10.0
    """CPU seconds of all processes together: the verdict."""
    wall_s: float = 20.0
    """The net under it: at least four times `cpu_s` is allowed, so that a busy machine fails nobody."""
    memory_mb: int = 1024
    processes: int = 32
    """Processes and threads alive at once, the first one included."""
    open_files: int = 128
    file_mb: int = 64
    """Largest single file."""
    disk_mb: int = 128
    output_kb: int = 1024
    """Bytes of standard output and standard error together."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"limits.{name} is {value!r}, expected a number above 0")

    @property
    def net_s(self) -> float:
        """Wall seconds after which a program is ended whatever it did."""
        return max(self.wall_s, 4 * self.cpu_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run: exactly one of `argv` (executed) and `code` (Python, run in a fork of the warm interpreter).

    `files` are put into the scratch folder, which is the working directory (relative names, executable); `collect`
    names files to bring back when the program has ended.
    """

    argv: Sequence[str] = ()
    code: str = ""
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    collect: Sequence[str] = ()
    limits_address_space: bool = True
    """False for runtimes that reserve far more addresses than they use (node): the memory watcher alone holds then."""

    def __post_init__(self) -> None:
        if bool(self.argv) == bool(self.code):
            raise ValueError("a program is either argv or code, one of them, not both")
        check_names((*self.files, *self.collect))


def check_names(names: Iterable[str]) -> None:
    """ValueError for a file name that does not lie in the scratch folder."""
    for name in names:
        if not name or any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(
                f"file name {name!r}: expected a path relative to the scratch folder, without '..'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a program ended and what it left."""

    status: Status
    tier: Holder
    exit_code: int | None = None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    waited_s: float = 0.0
    """Seconds that its processes were ready to run and had no core, as far as they were seen."""
    queue_s: float = 0.0
    """Waiting for a free place before it started; in no other figure."""
    peak_mb: float = 0.0
    truncated: bool = False
    """Whether output was cut at the limit."""
    detail: str = ""
    """What to tell a person: which limit at what figure, why refused, why broken."""

    @property
    def succeeded(self) -> bool:
        """Exited by itself with code 0."""
        return self.status == "exited" and self.exit_code == 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data without the bytes, for logs."""
        return {k: v for k, v in asdict(self).items() if k not in ("stdout", "stderr", "files")}
