"""All learner ranks behind one door: shards batches, calls every rank at once, deadlines."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf.batch import Batch
from rlhf.cluster.watchdog import Named, answer
from rlhf.config.schema import TimeoutConfig
from rlhf.data.packing import plan_microbatches, split_microbatches
from rlhf.interfaces import LossFunction, SenderFactory, UpdateMetrics

_RELEASE_S = 20.0


@dataclass(slots=True)
class LearnerClient:
    """interfaces.Learner over actors, one per rank."""

    ranks: Sequence[Named]
    microbatch_tokens: int
    timeouts: TimeoutConfig

    async def update(self, minibatches: Sequence[Batch], loss: LossFunction) -> UpdateMetrics:
        """One optimizer step per mini-batch, in order."""
        return await self._update("update", minibatches, loss)

    async def update_shares(self, shares: Sequence[Any]) -> UpdateMetrics:
        """One optimizer step on micro-batches that are shared out already: [rank][micro-batch]."""
        answers = await self._on_ranks("update", [([share],) for share in shares])
        metrics: UpdateMetrics = answers[0]
        return metrics

    async def update_critic(self, minibatches: Sequence[Batch], loss: LossFunction) -> UpdateMetrics:
        """One optimizer step of the critic per mini-batch, in order."""
        return await self._update("update_critic", minibatches, loss)

    async def _update(self, method: str, minibatches: Sequence[Batch], loss: LossFunction) -> UpdateMetrics:
        shares = [
            split_microbatches(m, ranks=len(self.ranks), budget_tokens=self._budget(m)) for m in minibatches
        ]
        answers = await self._on_ranks(
            method, [([share[rank] for share in shares], loss) for rank in range(len(self.ranks))]
        )
        metrics: UpdateMetrics = answers[0]
        return metrics

    async def logprobs(
        self, batch: Batch, *, reference: bool = False, teacher: str | None = None
    ) -> torch.Tensor:
        """[N] log-probabilities; 0 where not trained."""
        plan = plan_microbatches(batch, ranks=len(self.ranks), budget_tokens=self._budget(batch))
        answers = await self._on_ranks(
            "logprobs", [([batch.select_rows(rows) for rows in share], reference, teacher) for share in plan]
        )
        gathered = torch.zeros(batch.num_tokens)
        for share, parts in zip(plan, answers, strict=True):
            for rows, part in zip(share, parts, strict=True):
                gathered[batch.token_index(rows)] = part
        return gathered

    async def values(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The critic's values before each trained token [N] (0 elsewhere) and after each row [B]."""
        plan = plan_microbatches(batch, ranks=len(self.ranks), budget_tokens=self._budget(batch))
        answers = await self._on_ranks("values", [([batch.select_rows(r) for r in share],) for share in plan])
        values, last_values = torch.zeros(batch.num_tokens), torch.zeros(batch.num_rows)
        for share, parts in zip(plan, answers, strict=True):
            for rows, (part, last) in zip(share, parts, strict=True):
                values[batch.token_index(rows)] = part
                last_values[rows] = last
        return values, last_values

    def _budget(self, batch: Batch) -> int:
        return self.microbatch_tokens // batch.num_computed

    async def reset_reference(self) -> None:
        """Make the current weights the reference."""
        await self._on_all("reset_reference")

    async def probe(
        self, sequences: Sequence[Sequence[int]], images: Sequence[Sequence[str]] = ()
    ) -> list[list[float]]:
        """[sequence][T-1] log-probabilities at temperature 1."""
        answers = await self._on_all("probe", sequences, images)
        return answers[0]  # type: ignore[no-any-return]

    async def open_sender(self, make: SenderFactory) -> None:
        """Make each rank's half of the weight transfer there; it is kept for the run."""
        await self._on_all("open_sender", make)

    async def rendezvous(self) -> tuple[str, int]:
        """A host name and a free port of rank 0's machine."""
        first = self.ranks[0]
        found = await answer(
            first.handle.address.remote(), actor=first, call="address", limit_s=self.timeouts.sync_s
        )
        return found  # type: ignore[no-any-return]

    async def send_weights(self, version: int) -> Mapping[str, Any] | None:
        """Run the sender on every rank; rank 0's update message."""
        answers = await self._on_all("send", version, limit_s=self.timeouts.sync_s)
        return answers[0]  # type: ignore[no-any-return]

    async def release_weights(self) -> None:
        """Free what sending made."""
        await self._on_all("release_weights", limit_s=_RELEASE_S)

    async def save(self, folder: str) -> None:
        """Model, optimizer, schedule and RNG into `folder`."""
        await self._on_all("save", folder)

    async def load(self, folder: str) -> None:
        """Restore what `save` wrote."""
        await self._on_all("load", folder)

    async def export(self, folder: str) -> None:
        """A Hugging Face folder."""
        await self._on_all("export", folder)

    async def offload(self) -> None:
        """Move what the engine needs room for off the device."""
        await self._on_all("offload")

    async def reload(self) -> None:
        """Move it back."""
        await self._on_all("reload")

    async def close(self) -> None:
        """End every rank."""
        calls = (answer(r.handle.close.remote(), actor=r, call="close", limit_s=30) for r in self.ranks)
        await asyncio.gather(*calls, return_exceptions=True)

    async def _on_all(self, method: str, *args: Any, limit_s: float | None = None) -> list[Any]:
        return await self._on_ranks(method, [args] * len(self.ranks), limit_s=limit_s)

    async def _on_ranks(self, method: str, args: Sequence[Any], *, limit_s: float | None = None) -> list[Any]:
        """Call `method` on all ranks at once. The first failure is raised: the others hang in its collective."""
        limit = self.timeouts.update_s if limit_s is None else limit_s
        calls = [
            answer(rank.handle.call.remote(method, *given), actor=rank, call=method, limit_s=limit)
            for rank, given in zip(self.ranks, args, strict=True)
        ]
        return list(await asyncio.gather(*calls))
