"""Prompts of several scenarios as one resumable stream: which scenario comes next, and one ledger each."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf.config.task import CurriculumConfig, ScenarioConfig
from rlhf.data.prompts import PromptStream
from rlhf.errors import CheckpointError, DataError
from rlhf.types import Prompt

_WHOLE = 1 << 40
"""One prompt, in the integers that shares are counted in: sums of them are exact, the same on every machine."""


class Turns:
    """Whose turn an admission index is: a function of the index and the weights alone.

    Every index belongs to the scenario that is furthest behind its share of all indices up to it (the first such in
    the order of `weights_at`). After n of them a scenario has n times its share, give or take one or two, and exactly
    that where all these products are whole: with weights 3 and 1 every step of 64 has 48 and 16.
    """

    def __init__(self, weights_at: Callable[[int], Sequence[float]], *, prompts_per_step: int) -> None:
        """`weights_at` gives the weights of a nominal step, which is index // prompts_per_step."""
        self._weights_at = weights_at
        self._per_step = prompts_per_step
        self._turns = array("H")
        self._behind = [0] * len(weights_at(0))
        self._shares: list[int] = []

    def turn(self, index: int) -> int:
        """Place of the scenario whose turn it is."""
        while len(self._turns) <= index:
            self._next()
        return self._turns[index]

    def _next(self) -> None:
        step, place = divmod(len(self._turns), self._per_step)
        if place == 0 or not self._shares:
            self._shares = _shares(self._weights_at(step))
        for number, share in enumerate(self._shares):
            self._behind[number] += share
        chosen = max(
            (number for number, share in enumerate(self._shares) if share),
            key=lambda n: (self._behind[n], -n),
        )
        self._behind[chosen] -= _WHOLE
        self._turns.append(chosen)


def _shares(weights: Sequence[float]) -> list[int]:
    """The weights as parts of `_WHOLE`, which they add up to."""
    total = sum(weights)
    shares = [int(weight / total * _WHOLE) for weight in weights]
    shares[max(range(len(shares)), key=shares.__getitem__)] += _WHOLE - sum(shares)
    return shares


class PromptMixture:
    """Several prompt streams as one: an interfaces.PromptLedger.

    Every scenario has a PromptStream of its own: its shuffled epochs, its ledger, its curriculum. Whose turn an index
    is follows from the weights (`Turns`); which of its prompts that scenario then gives, from its own ledger. What a
    curriculum passes over is replaced within its scenario, so shares hold; groups that are discarded after they were
    rolled out are not, so that a scenario of many such groups has less of what is trained than of what is rolled out.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        scenarios: Mapping[str, ScenarioConfig],
        *,
        prompts_per_step: int,
        seed: int,
        curriculum: CurriculumConfig | None = None,
    ) -> None:
        """`prompts` of all scenarios, which must be the same at every resume (checked)."""
        self._scenarios = dict(sorted(scenarios.items()))
        self._names = list(self._scenarios)
        self._per_step = prompts_per_step
        self._streams: dict[str, PromptStream] = {}
        for name in self._names:
            own = [prompt for prompt in prompts if prompt.scenario == name]
            if not own:
                raise DataError(f"task.scenarios.{name}.train has no prompts.")
            self._streams[name] = PromptStream(own, seed=_seed_of(name, seed), curriculum=curriculum)
        self._turns = Turns(self._weights_at, prompts_per_step=prompts_per_step)
        self._next = 0
        self._open: dict[int, int] = {}
        """Admission in flight -> its index in the stream of its scenario."""
        self._again: list[int] = []
        self._reported: Counter[str] = Counter()

    def scenario(self, index: int) -> str:
        """Name of the scenario that an admission belongs to."""
        return self._names[self._turns.turn(index)]

    def next(self) -> tuple[int, Prompt]:
        """(admission index, prompt); it is in flight from now on."""
        if self._again:
            index = self._again.pop(0)
        else:
            index, self._next = self._next, self._next + 1
        # What was in flight when the run stopped its stream, too, hands out first, and in order.
        self._open[index], prompt = self._streams[self.scenario(index)].next()
        return index, prompt

    def trained(self, index: int, solved: Sequence[bool] = ()) -> None:
        """Settle an admission: the weights have learned from it. `solved` says so of each gradable attempt."""
        self._stream(index).trained(self._open[index], solved)
        del self._open[index]

    def discard(self, index: int, reason: str, solved: Sequence[bool] = ()) -> None:
        """Settle an admission that will not be trained on; counted by reason."""
        self._stream(index).discard(self._open[index], reason, solved)
        del self._open[index]

    @property
    def in_flight(self) -> list[int]:
        """Admissions handed out (or to be handed out again) and not settled, oldest first."""
        return sorted(self._open)

    @property
    def num_fetched(self) -> int:
        """Admissions so far; what a curriculum passed over is not one of them."""
        return self._next

    @property
    def num_trained(self) -> int:
        """Admissions trained on so far."""
        return sum(stream.num_trained for stream in self._streams.values())

    @property
    def discarded(self) -> Mapping[str, int]:
        """Discarded admissions by reason."""
        return dict(sum((Counter(stream.discarded) for stream in self._streams.values()), Counter()))

    def metrics(self) -> Mapping[str, float]:
        """`scenario/` metrics of the ledgers since the last call: groups thrown away, passed over, pass rates."""
        found: dict[str, float] = {}
        for name, stream in self._streams.items():
            thrown = sum(n for reason, n in stream.discarded.items() if reason != "curriculum")
            found[f"scenario/{name}/discarded"] = float(thrown - self._reported[name])
            self._reported[name] = thrown
            for metric, value in stream.metrics().items():
                found[metric.replace("curriculum", f"scenario/{name}", 1)] = value
        return found

    def state_dict(self) -> dict[str, Any]:
        """The ledgers as plain JSON; their size does not grow with the run."""
        return {
            "mixture": self._fingerprint(),
            "next": self._next,
            "open": sorted(self._open.items()),
            "scenarios": {name: stream.state_dict() for name, stream in self._streams.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was called. Raises CheckpointError for other prompts, shares or another seed."""
        if state.get("mixture") != self._fingerprint():
            raise CheckpointError(
                f"the checkpoint's prompt ledger belongs to another mixture: found {state.get('mixture')}, expected "
                f"{self._fingerprint()}. Resume with the scenarios and weights the run began with, and, with "
                "weight_points, its schedule.prompts_per_step."
            )
        for name, stream in self._streams.items():
            stream.load_state_dict(state["scenarios"][name])
        self._next = int(state["next"])
        self._open = {int(index): int(own) for index, own in state["open"]}
        self._again = self.in_flight
        for name, stream in self._streams.items():
            self._reported[name] = sum(n for reason, n in stream.discarded.items() if reason != "curriculum")

    def _stream(self, index: int) -> PromptStream:
        if index not in self._open or index in self._again:
            raise ValueError(f"admission {index} is not in flight: settled before, or never handed out")
        return self._streams[self.scenario(index)]

    def _weights_at(self, step: int) -> list[float]:
        return [scenario.weight_at(step) for scenario in self._scenarios.values()]

    def _fingerprint(self) -> dict[str, Any]:
        weights = {
            name: [list(point) for point in scenario.weight_points] or scenario.weight
            for name, scenario in self._scenarios.items()
        }
        has_points = any(scenario.weight_points for scenario in self._scenarios.values())
        return {"weights": weights, "prompts_per_step": self._per_step if has_points else None}


def _seed_of(name: str, seed: int) -> int:
    """Scenarios of equally many prompts are not shuffled alike."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\x00{name}".encode(), digest_size=4).digest(), "big")
