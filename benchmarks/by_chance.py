"""Environments whose score is by chance while the right one is logged: controls from which nothing must be learned."""

from envs.guess_number import GuessNumber
from envs.two_tools import TwoTools
from rlhf.interfaces import Context


class GuessNumberByChance(GuessNumber):
    """`env/log/score` is the right score."""

    def score(self, context: Context) -> float:
        """A number from 0 to 1."""
        context.log(score=super().score(context))
        return context.rng.random()


class TwoToolsByChance(TwoTools):
    """`env/log/score` is the right score."""

    def score(self, context: Context) -> float:
        """0 or 1."""
        context.log(score=super().score(context))
        return float(context.rng.random() < 0.5)
