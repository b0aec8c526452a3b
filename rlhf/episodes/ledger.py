"""The token ledger: one episode's tokens, written down as they are made and never re-tokenised."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlhf.types import (
    NOT_SAMPLED,
    Completion,
    Dropped,
    Message,
    Segment,
    SegmentReason,
    Trajectory,
    Turn,
    token_digest,
)

_NO_IDS: NDArray[np.int32] = np.empty(0, np.int32)


class _OpenSegment:
    """A segment that still grows; five lists of one length, and the routing of its first tokens."""

    def __init__(self, reason: SegmentReason) -> None:
        self.reason = reason
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
            reason=self.reason,
            routing=self._all_routing() if has_routing else None,
            kept=tuple(self.kept) if has_kept else None,
        )


class TokenLedger:
    """Builds an episode's segments append-only, and checks the two laws.

    1. The engine was asked with exactly the ids written here, and what it returned is written unchanged.
    2. Every sampled token stands in exactly one segment once, or is listed as dropped.

    A context that is rewritten or goes on twice (not extended) is a new segment: what was sampled is given there,
    and trained where it was sampled. Several may grow at a time.
    """

    def __init__(self) -> None:
        self._segments: list[_OpenSegment] = []
        self._turns: list[Turn] = []
        self._dropped: list[Dropped] = []
        self.num_sampled = 0
        """Tokens that the engine returned."""

    def open(self, ids: Sequence[int], reason: SegmentReason = "start") -> int:
        """Begin a segment with ids that nobody samples now; its place."""
        self._segments.append(_OpenSegment(reason))
        self._segments[-1].given(ids)
        return len(self._segments) - 1

    def context(self, segment: int) -> tuple[int, ...]:
        """The ids to ask the engine with."""
        return tuple(self._segments[segment].token_ids)

    def append(
        self,
        segment: int,
        completion: Completion,
        *,
        seen: Sequence[int],
        message: Message,
        seconds: float = 0.0,
    ) -> None:
        """Add what the engine returned for a request whose ids were `seen`; `message` is its readable form."""
        if tuple(seen) != self.context(segment):
            raise ValueError(
                f"ledger: the engine saw {len(seen)} ids that are not the {len(self.context(segment))} written "
                "down; a context must be extended here before it is sampled from"
            )
        self._segments[segment].sampled(completion)
        self.num_sampled += len(completion.token_ids)
        turn = self._turn(segment, message, start=len(seen), seconds=seconds)
        self._turns.append(replace(turn, finish=completion.finish_reason, context_digest=token_digest(seen)))

    def observe(
        self, segment: int, ids: Sequence[int], *, messages: Sequence[Message], seconds: Sequence[float] = ()
    ) -> None:
        """Add the ids of messages that nobody sampled, template tokens around them included.

        They stand at the first of them: where one ends and the next begins is the template's affair.
        """
        start = len(self.context(segment))
        self._segments[segment].given(ids)
        for message, taken in zip(messages, seconds or [0.0] * len(messages), strict=True):
            self._turns.append(self._turn(segment, message, start=start, seconds=taken))
            start = len(self.context(segment))

    def reward(self, value: float) -> None:
        """Add to the reward of the turn that was sampled last."""
        place = next(i for i in reversed(range(len(self._turns))) if self._turns[i].finish is not None)
        turn = self._turns[place]
        self._turns[place] = replace(turn, reward=turn.reward + value)

    def drop(self, completion: Completion, reason: str) -> None:
        """List a completion that will not be trained on (its episode went on from an earlier context)."""
        self.num_sampled += len(completion.token_ids)
        self._dropped.append(Dropped(num_tokens=len(completion.token_ids), reason=reason))

    def finish(self) -> tuple[tuple[Segment, ...], tuple[Turn, ...], tuple[Dropped, ...]]:
        """The segments, the turns in them, and what was dropped. Raises ValueError when a law is broken.

        Segments without a sampled token are left out, save the only one: there is nothing to train in them.
        """
        segments = [segment.close() for segment in self._segments]
        kept = [i for i, segment in enumerate(segments) if segment.num_sampled or len(segments) == 1]
        place = {old: new for new, old in enumerate(kept)}
        turns = [replace(t, segment=place[t.segment]) for t in self._turns if t.segment in place]
        found = tuple(segments[i] for i in kept), tuple(turns), tuple(self._dropped)
        check_laws(*found, num_sampled=self.num_sampled)
        return found

    def _turn(self, segment: int, message: Message, *, start: int, seconds: float) -> Turn:
        stop = len(self._segments[segment].token_ids)
        return Turn(message=message, segment=segment, start=start, stop=stop, seconds=seconds)


def check_laws(
    segments: Sequence[Segment], turns: Sequence[Turn], dropped: Sequence[Dropped], *, num_sampled: int
) -> None:
    """Raise ValueError when a record is not what the engine saw and returned.

    `num_sampled` is the count of tokens that the engine returned, kept apart from the record.
    """
    num_kept = sum(segment.num_sampled for segment in segments)
    num_dropped = sum(part.num_tokens for part in dropped)
    if num_kept + num_dropped != num_sampled:
        raise ValueError(
            f"ledger: {num_sampled} tokens were sampled, but {num_kept} written and {num_dropped} dropped"
        )
    masks = [[False] * len(segment.token_ids) for segment in segments]
    for turn in turns:
        ids = segments[turn.segment].token_ids
        if turn.finish is None:
            continue
        if token_digest(ids[: turn.start]) != turn.context_digest:
            raise ValueError(
                f"ledger: the {turn.start} ids before a turn are not those that the engine was asked with"
            )
        masks[turn.segment][turn.start : turn.stop] = [True] * (turn.stop - turn.start)
    if any(tuple(mask) != s.loss_mask for mask, s in zip(masks, segments, strict=True)):
        raise ValueError(
            "ledger: the loss mask and the sampled turns disagree about which tokens were sampled"
        )


def check_record(trajectory: Trajectory) -> None:
    """The laws on a whole record, however it was made or loaded. Raises ValueError."""
    num_sampled = trajectory.num_sampled + sum(part.num_tokens for part in trajectory.dropped)
    check_laws(trajectory.segments, trajectory.turns, trajectory.dropped, num_sampled=num_sampled)
