"""Environments with a planted fault each, for the tests of the check."""

import mmap
import random
import tempfile

from rlhf.types import Message, Step

_SEEN = []
_SHARED = mmap.mmap(-1, 8)


class Sound:
    """Asks twice, and pays for the reference. What a module keeps is each episode's own."""

    def reset(self, prompt, context):
        _SEEN.append(prompt.id)
        self.turns = 0
        self.best = 0.0

    def step(self, action, context):
        self.turns += 1
        self.best = max(self.best, float(action.content == context.prompt.reference))
        return Step(messages=(Message(role="user", content=self.said(context)),), terminated=self.turns == 2)

    def said(self, context):
        return f"{len(_SEEN)} and {context.rng.random()}"

    def score(self, context):
        return self.best


class Boxed(Sound):
    """Reads an answer in a box alone, cannot grade another, and has an episode without one pay."""

    def step(self, action, context):
        self.said_last = action.content
        return Step(terminated=True)

    def score(self, context):
        if not self.said_last:
            return -1.0
        boxed = f"\\boxed{{{context.prompt.reference}}}"
        return float(self.said_last == boxed) if self.said_last.startswith("\\boxed") else None


class Dice(Sound):
    """What it says comes from no seed."""

    def said(self, context):
        return f"you threw {random.random()}"


class Leaks(Sound):
    """Counts the episodes in memory that all of them share."""

    def reset(self, prompt, context):
        super().reset(prompt, context)
        _SHARED[0] = (_SHARED[0] + 1) % 256

    def said(self, context):
        return f"this is episode {_SHARED[0]}"


class Constant(Sound):
    """Pays everything alike."""

    def score(self, context):
        return 0.5


class NotGradable(Sound):
    """Has no verdict."""

    def score(self, context):
        return None


class Faulty:
    """Fails on row 1 in reset and on row 2 in score, has a tool that breaks, and leaves a folder."""

    def reset(self, prompt, context):
        tempfile.mkdtemp()
        self.number = int(prompt.reference)
        if self.number == 1:
            raise KeyError("no such task")

    def share(self, parts: int, among: list[str]) -> float:
        """Break a thing into parts."""
        return parts / (len(among) - 1)

    def find(self, name: str) -> str:
        """Find a name, and refuse all others."""
        raise ValueError(f"no {name}")

    def score(self, context):
        if self.number == 2:
            return float("nan")
        return float(context.messages[-1].content == context.prompt.reference)


class Hangs(Sound):
    """Never answers a step."""

    def step(self, action, context):
        import time

        time.sleep(600)
