"""Run one prompt's episodes against the engine."""

from collections.abc import Sequence

from rlhf.episodes.ledger import TokenLedger
from rlhf.episodes.render import Renderer
from rlhf.interfaces import GenerateRequest, RolloutEngine
from rlhf.types import Completion, Message, Prompt, Sampling, Trajectory


class SingleTurn:
    """One question, one answer: an interfaces.RolloutFunction."""

    def __init__(self, engine: RolloutEngine, *, renderer: Renderer) -> None:
        self._engine = engine
        self._renderer = renderer

    async def __call__(self, prompt: Prompt, *, seeds: Sequence[int], sampling: Sampling) -> list[Trajectory]:
        """One trajectory per seed, in order; all samples go to the engine as one request."""
        ids = self._renderer.encode_prompt(prompt)
        request = GenerateRequest(prompt_token_ids=ids, sampling=sampling, seeds=tuple(seeds))
        completions = await self._engine.generate(request)
        samples = enumerate(zip(completions, seeds, strict=True))
        return [self._record(ids, completion, index=i, seed=seed) for i, (completion, seed) in samples]

    def _record(self, ids: tuple[int, ...], completion: Completion, *, index: int, seed: int) -> Trajectory:
        ledger = TokenLedger()
        segment = ledger.open(ids)
        message = Message(role="assistant", content=self._renderer.decode(completion.token_ids))
        ledger.append(segment, completion, seen=ids, message=message)
        segments, turns, _ = ledger.finish()
        return Trajectory(
            segments=segments, turns=turns, stop=completion.finish_reason, sample_index=index, seed=seed
        )
