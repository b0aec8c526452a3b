"""Curriculum by measured pass rate: which prompts are worth another visit."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.config.task import CurriculumConfig


class Curriculum:
    """How often each prompt was solved, and the rule that passes over prompts outside the band.

    Attempts of an epoch count half as much as those of the next. Weights are powers of two, so sums are exact
    and the order in which groups finish changes nothing.
    """

    def __init__(self, config: CurriculumConfig, *, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._measured: dict[str, tuple[float, float, int]] = {}
        """Prompt id -> solved and graded attempts in the weight of the epoch given last."""
        self._num_skipped = 0

    def record(self, prompt_id: str, *, epoch: int, solved: Sequence[bool]) -> None:
        """Take in a settled group: whether each gradable attempt of `epoch` solved the prompt."""
        if not solved:
            return
        passes, attempts, last = self._measured.get(prompt_id, (0.0, 0.0, epoch))
        now = max(epoch, last)
        old, new = 0.5 ** (now - last), 0.5 ** (now - epoch)
        self._measured[prompt_id] = (
            passes * old + sum(solved) * new,
            attempts * old + len(solved) * new,
            now,
        )

    def pass_rate(self, prompt_id: str) -> float | None:
        """Share of attempts that solved the prompt, recent ones counting most; None before the first."""
        if prompt_id not in self._measured:
            return None
        passes, attempts, _ = self._measured[prompt_id]
        return passes / attempts

    def skips(self, prompt_id: str, *, epoch: int) -> bool:
        """Whether to pass over the prompt in this epoch; a function of its pass rate, the seed and the epoch."""
        if not self._is_outside(prompt_id):
            return False
        key = f"{self._seed}\x00{epoch}\x00{prompt_id}".encode()
        drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
        skipped = drawn >= self._config.revisit
        self._num_skipped += skipped
        return skipped

    def metrics(self) -> dict[str, float]:
        """`curriculum/` metrics; `skipped` since the last call."""
        skipped, self._num_skipped = self._num_skipped, 0
        measured = list(self._measured)
        if not measured:
            return {"curriculum/skipped": float(skipped)}
        rates = [rate for prompt_id in measured if (rate := self.pass_rate(prompt_id)) is not None]
        return {
            "curriculum/skipped": float(skipped),
            "curriculum/pass_rate": sum(rates) / len(rates),
            "curriculum/outside_share": sum(map(self._is_outside, measured)) / len(measured),
        }

    def state_dict(self) -> dict[str, Any]:
        """The measurements as plain JSON."""
        return {prompt_id: list(measured) for prompt_id, measured in self._measured.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the measurements of `state_dict`."""
        self._measured = {prompt_id: (float(p), float(n), int(e)) for prompt_id, (p, n, e) in state.items()}

    def _is_outside(self, prompt_id: str) -> bool:
        rate = self.pass_rate(prompt_id)
        return rate is not None and not self._config.low <= rate <= self._config.high
