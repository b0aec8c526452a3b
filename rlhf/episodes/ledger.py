"""The token ledger: one episode's tokens, written down as they are made and never re-tokenised."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf.types import NOT_SAMPLED, Completion, Message, Segment, Turn

_NO_IDS: NDArray[np.int32] = np.empty(0, np.int32)


class _OpenSegment:
    """A segment that still grows; five lists of one length, and the routing of its first tokens."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.loss_mask: list[bool] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.kept: list[NDArray[np.int32]] = []
        self.routing: list[NDArray[np.int16]] = []
        self.records: tuple[bool, bool] | None = None
        """Whether the engine reports (routing, kept sets); None before it has said."""

    def given(self, ids: Sequence[int]) -> None:
        self.token_ids += ids
        self.loss_mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.versions += [NOT_SAMPLED] * len(ids)
        self.kept += [_NO_IDS] * len(ids)

    def sampled(self, completion: Completion) -> None:
        records = (completion.routing is not None, completion.kept is not None)
        if self.records not in (None, records):
            raise ValueError(
                f"ledger: (routing, kept sets) of an episode were reported {self.records}, now {records}"
            )
        self.records = records
        self.token_ids += completion.token_ids
        self.loss_mask += [True] * len(completion.token_ids)
        self.logprobs += completion.logprobs
        self.versions += completion.versions
        self.kept += completion.kept or [_NO_IDS] * len(completion.token_ids)
        if completion.routing is not None:
            self._routed(completion.routing)

    def _routed(self, routing: NDArray[np.int16]) -> None:
        if len(routing) != len(self.token_ids):
            raise ValueError(
                f"ledger: routing of {len(routing)} tokens for {len(self.token_ids)} written down"
            )
        # What an earlier turn reported stays: its tokens were sampled with that.
        num_known = sum(map(len, self.routing))
        self.routing.append(routing[num_known:-1])

    def _all_routing(self) -> NDArray[np.int16]:
        known = np.concatenate(self.routing)
        never_inputs = np.full((len(self.token_ids) - len(known), *known.shape[1:]), -1, np.int16)
        return np.concatenate([known, never_inputs])

    def close(self) -> Segment:
        has_routing, has_kept = self.records or (False, False)
        return Segment(
            token_ids=tuple(self.token_ids),
            loss_mask=tuple(self.loss_mask),
            rollout_logprobs=tuple(self.logprobs),
            versions=tuple(self.versions),
            routing=self._all_routing() if has_routing else None,
            kept=tuple(self.kept) if has_kept else None,
        )


class TokenLedger:
    """Builds an episode's segments append-only, and checks the two laws.

    1. The engine was asked with exactly the ids written here, and what it returned is written unchanged.
    2. Every sampled token stands in exactly one segment once, or is counted in `num_dropped`.

    A context that is rewritten (not extended) starts a new segment with `extend_prompt(ids, rewrite=True)`.
    """

    def __init__(self) -> None:
        self._segments = [_OpenSegment()]
        self._turns: list[Turn] = []
        self._num_sampled = 0
        self.num_dropped = 0

    @property
    def context(self) -> tuple[int, ...]:
        """The ids to ask the engine with."""
        return tuple(self._segments[-1].token_ids)

    def extend_prompt(self, ids: Sequence[int], *, rewrite: bool = False) -> None:
        """Add ids that nobody sampled; `rewrite` makes them the start of a new segment."""
        if rewrite and self._segments[-1].token_ids:
            self._segments.append(_OpenSegment())
        self._segments[-1].given(ids)

    def append(self, completion: Completion, *, seen: Sequence[int], text: str) -> None:
        """Add what the engine returned for a request whose ids were `seen`; `text` is its readable form."""
        if tuple(seen) != self.context:
            raise ValueError(
                f"ledger: the engine saw {len(seen)} ids that are not the {len(self.context)} written down; "
                "a context must be extended here before it is sampled from"
            )
        start = len(self.context)
        self._segments[-1].sampled(completion)
        self._num_sampled += len(completion.token_ids)
        self._add_turn(Message(role="assistant", content=text), start)

    def observe(self, ids: Sequence[int], *, message: Message) -> None:
        """Add the ids of a tool's or user's message, template tokens around it included."""
        start = len(self.context)
        self._segments[-1].given(ids)
        self._add_turn(message, start)

    def drop(self, completion: Completion) -> None:
        """Count a completion that will not be trained on (its episode went on from an earlier context)."""
        self._num_sampled += len(completion.token_ids)
        self.num_dropped += len(completion.token_ids)

    def finish(self) -> tuple[tuple[Segment, ...], tuple[Turn, ...]]:
        """The segments and the turns in them. Raises ValueError when a sampled token is lost or doubled."""
        segments = tuple(segment.close() for segment in self._segments)
        num_kept = sum(segment.num_sampled for segment in segments)
        if num_kept + self.num_dropped != self._num_sampled:
            raise ValueError(
                f"ledger: {self._num_sampled} tokens were sampled, "
                f"but {num_kept} written and {self.num_dropped} dropped"
            )
        return segments, tuple(self._turns)

    def _add_turn(self, message: Message, start: int) -> None:
        segment = len(self._segments) - 1
        self._turns.append(Turn(message=message, segment=segment, start=start, stop=len(self.context)))
