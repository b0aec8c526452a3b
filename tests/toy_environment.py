"""An environment of two turns that a random model of 0.1 M parameters learns in thirty steps: write digits, twice."""

from rlhf.types import Message, Step


class Digits:
    """Scores the share of digits in both turns; `shuffled` scores by chance, for a control that must not learn."""

    def __init__(self, *, shuffled: bool = False) -> None:
        self._shuffled = shuffled
        self._shares: list[float] = []

    def reset(self, prompt, context):
        """The prompt's own message."""

    def step(self, action, context):
        text = action.content
        self._shares.append(sum(c.isdigit() for c in text) / max(len(text), 1))
        more = (Message(role="user", content="more"),)
        return Step(messages=more, terminated=len(self._shares) == 2)

    def score(self, context):
        share = sum(self._shares) / 2
        context.log(digits=share)
        return context.rng.random() if self._shuffled else share
