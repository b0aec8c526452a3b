"""Which engine gets a prompt: the one that already holds most of its prefix, unless it is too busy."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Router:
    """Prefix-aware, load-aware routing. Load is in tokens not yet returned; prefixes are known by whole blocks."""

    num_engines: int
    block: int = 64
    """Tokens per remembered prefix block."""
    slack: float = 1.5
    """A prefix match may not take an engine beyond slack * the mean load (plus one request)."""
    capacity: int = 65536
    """Blocks remembered per engine, oldest forgotten first."""
    loads: list[int] = field(init=False)
    _known: list[OrderedDict[int, None]] = field(init=False)

    def __post_init__(self) -> None:
        self.loads = [0] * self.num_engines
        self.forget()

    def assign(self, prompt: Sequence[int], *, tokens: int) -> int:
        """Choose an engine for `prompt` and add `tokens` (prompt plus all it may sample) to its load."""
        if self.num_engines == 1:
            self.loads[0] += tokens
            return 0
        hashes = [hash(tuple(prompt[: end + self.block])) for end in range(0, len(prompt), self.block)]
        limit = self.slack * sum(self.loads) / self.num_engines + tokens
        matches = [self._match(engine, hashes) for engine in range(self.num_engines)]
        allowed = [e for e in range(self.num_engines) if self.loads[e] + tokens <= limit]
        engine = max(allowed, key=lambda e: (matches[e], -self.loads[e], -e))
        self.loads[engine] += tokens
        self._remember(engine, hashes)
        return engine

    def finish(self, engine: int, *, tokens: int) -> None:
        """Take a returned request off the engine's load."""
        self.loads[engine] -= tokens

    def forget(self) -> None:
        """Prefix caches were cleared (new weights)."""
        self._known = [OrderedDict() for _ in range(self.num_engines)]

    def _match(self, engine: int, hashes: Sequence[int]) -> int:
        return next((i for i, h in enumerate(hashes) if h not in self._known[engine]), len(hashes))

    def _remember(self, engine: int, hashes: Sequence[int]) -> None:
        known = self._known[engine]
        for value in hashes:
            known[value] = None
            known.move_to_end(value)
        while len(known) > self.capacity:
            known.popitem(last=False)
