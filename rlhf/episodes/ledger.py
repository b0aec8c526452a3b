"""The token ledger: one episode's tokens, written down as they are made and never re-tokenised."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlhf.errors import EpisodeError
from rlhf.image_codes import DrawnImages
from rlhf.types import (
    NOT_SAMPLED,
    Completion,
    Dropped,
    Message,
    Segment,
    SegmentReason,
    Trajectory,
    Turn,
)

_NO_IDS: NDArray[np.int32] = np.empty(0, np.int32)


class _RunningDigest:
    """`rlhf.types.token_digest` of ids that become more."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.length = 0

    def add(self, ids: Sequence[int]) -> None:
        self._hash.update(array("q", ids).tobytes())
        self.length += len(ids)

    def __str__(self) -> str:
        return self._hash.hexdigest()


class _RunningSeal:
    """`Trajectory.seal` of what an engine returned so far."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.num_tokens = 0

    def add(self, context: str, part: Completion) -> None:
        """What was returned for the ids whose digest is `context`."""
        if not part.token_ids:
            return
        self._hash.update(f"{context} {part.finish_reason}".encode())
        self._hash.update(array("q", part.token_ids).tobytes())
        self._hash.update(array("q", part.versions).tobytes())
        self._hash.update(array("d", part.logprobs).tobytes())
        for ids in part.kept or ():
            self._hash.update(array("q", [len(ids), *ids]).tobytes())
        if part.drawn is not None:
            self._hash.update(repr(part.drawn).encode())
        self.num_tokens += len(part.token_ids)

    def close(self, segments: Iterable["_RunningDigest"], dropped: Sequence[Dropped]) -> str:
        """With all of the segments' ids, seen or not, and what was dropped."""
        listed = json.dumps([*map(str, segments), *((part.num_tokens, part.reason) for part in dropped)])
        whole = self._hash.copy()
        whole.update(listed.encode())
        return f"{self.num_tokens + sum(part.num_tokens for part in dropped)}-{whole.hexdigest()}"


class _OpenSegment:
    """A segment that still grows; five lists of one length, and the routing of its first tokens."""

    def __init__(self, reason: SegmentReason, images: tuple[str, ...]) -> None:
        self.reason = reason
        self.images = images
        self.token_ids: list[int] = []
        self.loss_mask: list[bool] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.kept: list[NDArray[np.int32]] = []
        self.routing: list[NDArray[np.int16]] = []
        self.drawn: DrawnImages | None = None
        self.digest = _RunningDigest()
        self.records: tuple[bool, bool] | None = None
        """Whether the engine reports (routing, kept sets); None before it has said."""

    def given(self, ids: Sequence[int]) -> None:
        self.token_ids += ids
        self.digest.add(ids)
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
        if completion.drawn is not None:
            self._drew(completion.drawn.moved(len(self.token_ids)))
        self.token_ids += completion.token_ids
        self.digest.add(completion.token_ids)
        self.loss_mask += [True] * len(completion.token_ids)
        self.logprobs += completion.logprobs
        self.versions += completion.versions
        self.kept += completion.kept or [_NO_IDS] * len(completion.token_ids)
        if completion.routing is not None:
            self._routed(completion.routing)

    def _drew(self, drawn: DrawnImages) -> None:
        if self.drawn is not None and self.drawn.rule != drawn.rule:
            raise ValueError(
                f"ledger: images of an episode were drawn by {self.drawn.rule}, now by {drawn.rule}"
            )
        before = () if self.drawn is None else self.drawn.spans
        self.drawn = replace(drawn, spans=(*before, *drawn.spans))

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
            images=self.images,
            reason=self.reason,
            routing=self._all_routing() if has_routing else None,
            kept=tuple(self.kept) if has_kept else None,
            drawn=self.drawn,
        )


class TokenLedger:
    """Builds an episode's segments append-only, and checks the two laws.

    1. The engine was asked with exactly the ids written here, and what it returned is written unchanged.
    2. Every sampled token stands in exactly one segment once, or is listed as dropped.

    A context that is rewritten or goes on twice (not extended) is a new segment: what was sampled is given there,
    and trained where it was sampled. Several may grow at a time.
    """

    def __init__(self, dropped: Sequence[Dropped] = ()) -> None:
        """`dropped`: what earlier attempts at the episode sampled."""
        self._segments: list[_OpenSegment] = []
        self._turns: list[Turn] = []
        self._dropped = list(dropped)
        self._seal = _RunningSeal()
        self.num_sampled = 0
        """Tokens that the engine returned since the ledger was made."""

    @property
    def seal(self) -> str:
        """`Trajectory.seal` of everything the engine returned so far."""
        return self._seal.close([self._segments[i].digest for i in self._kept()], self._dropped)

    def open(self, ids: Sequence[int], reason: SegmentReason = "start", images: tuple[str, ...] = ()) -> int:
        """Begin a segment with ids, and the images in them, that nobody samples now; its place."""
        self._segments.append(_OpenSegment(reason, images))
        self._segments[-1].given(ids)
        return len(self._segments) - 1

    def context(self, segment: int) -> tuple[int, ...]:
        """The ids to ask the engine with."""
        return tuple(self._segments[segment].token_ids)

    def length(self, segment: int) -> int:
        """Number of ids in a segment."""
        return len(self._segments[segment].token_ids)

    def last_id(self, segment: int) -> int:
        """The last id of a segment."""
        return self._segments[segment].token_ids[-1]

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
        grown = self._segments[segment]
        if list(seen) != grown.token_ids:
            raise ValueError(
                f"ledger: the engine saw {len(seen)} ids that are not the {len(grown.token_ids)} written "
                "down; a context must be extended here before it is sampled from"
            )
        context = str(grown.digest)
        grown.sampled(completion)
        self._seal.add(context, completion)
        self.num_sampled += len(completion.token_ids)
        turn = replace(
            self._turn(segment, message, start=len(seen), seconds=seconds),
            finish=completion.finish_reason,
            context_digest=context,
            num_cached=completion.num_cached,
        )
        self._turns.append(turn)

    def observe(
        self, segment: int, ids: Sequence[int], *, messages: Sequence[Message], seconds: Sequence[float] = ()
    ) -> None:
        """Add the ids of messages that nobody sampled, template tokens around them included.

        They stand at the first of them: where one ends and the next begins is the template's affair.
        """
        start = self.length(segment)
        self._segments[segment].given(ids)
        for message, taken in zip(messages, seconds or [0.0] * len(messages), strict=True):
            self._turns.append(self._turn(segment, message, start=start, seconds=taken))
            start = self.length(segment)

    def reward(self, value: float) -> None:
        """Add to the reward of the turn that was sampled last. EpisodeError where there is none."""
        sampled = (i for i in reversed(range(len(self._turns))) if self._turns[i].finish is not None)
        if (place := next(sampled, None)) is None:
            raise EpisodeError(f"a reward of {value} came before any turn of the model")
        turn = self._turns[place]
        self._turns[place] = replace(turn, reward=turn.reward + value)

    def drop(self, completion: Completion, reason: str) -> None:
        """List a completion that will not be trained on (its episode went on from an earlier context)."""
        self.num_sampled += len(completion.token_ids)
        self._dropped.append(Dropped(num_tokens=len(completion.token_ids), reason=reason))

    def finish(self) -> tuple[tuple[Segment, ...], tuple[Turn, ...], tuple[Dropped, ...]]:
        """The segments, the turns in them, and what was dropped. Raises ValueError when a law is broken.

        Segments without a sampled token are left out, save a first one: there is nothing to train in them.
        """
        place = {old: new for new, old in enumerate(self._kept())}
        turns = [replace(t, segment=place[t.segment]) for t in self._turns if t.segment in place]
        found = tuple(self._segments[i].close() for i in place), tuple(turns), tuple(self._dropped)
        check_laws(*found, seal=self.seal)
        return found

    def _kept(self) -> list[int]:
        """The segments of the record."""
        sampled = [i for i, segment in enumerate(self._segments) if any(segment.loss_mask)]
        return sampled or [0] * bool(self._segments)

    def _turn(self, segment: int, message: Message, *, start: int, seconds: float) -> Turn:
        return Turn(message=message, segment=segment, start=start, stop=self.length(segment), seconds=seconds)


def check_laws(
    segments: Sequence[Segment], turns: Sequence[Turn], dropped: Sequence[Dropped], *, seal: str
) -> None:
    """Raise ValueError when a record is not what the engine saw and returned, as its seal has it."""
    sampled = [turn for turn in turns if turn.finish is not None and turn.start < turn.stop]
    _check_masks(segments, sampled)
    num_kept = sum(segment.num_sampled for segment in segments)
    num_dropped = sum(part.num_tokens for part in dropped)
    if str(num_kept + num_dropped) != seal.partition("-")[0]:
        raise ValueError(
            f"ledger: the seal {seal!r} begins with the number of tokens that were sampled, but {num_kept} are "
            f"written and {num_dropped} dropped"
        )
    digests = [_RunningDigest() for _ in segments]
    found = _RunningSeal()
    for turn in sampled:
        segment, digest = segments[turn.segment], digests[turn.segment]
        digest.add(segment.token_ids[digest.length : turn.start])
        if str(digest) != turn.context_digest:
            raise ValueError(
                f"ledger: the {turn.start} ids before a turn of segment {turn.segment} are not those that the "
                "engine was asked with"
            )
        found.add(turn.context_digest, _returned(segment, turn))
    for segment, digest in zip(segments, digests, strict=True):
        digest.add(segment.token_ids[digest.length :])
    if found.close(digests, dropped) != seal:
        raise ValueError(
            "ledger: ids, log-probabilities, versions or kept sets of the record, or the order of its turns, are "
            "not those that the engine returned"
        )


def check_record(trajectory: Trajectory) -> None:
    """The laws on a whole record, however it was made or loaded. Raises ValueError."""
    check_laws(trajectory.segments, trajectory.turns, trajectory.dropped, seal=trajectory.seal)


def _check_masks(segments: Sequence[Segment], sampled: Sequence[Turn]) -> None:
    """Each token that the mask shows as sampled belongs to one turn, and the other way round."""
    for place, segment in enumerate(segments):
        mask = [False] * len(segment.token_ids)
        for turn in (turn for turn in sampled if turn.segment == place):
            mask[turn.start : turn.stop] = [True] * (turn.stop - turn.start)
        if tuple(mask) != segment.loss_mask:
            raise ValueError(
                f"ledger: the loss mask of segment {place} and its turns disagree about which tokens were sampled"
            )
    if any(turn.segment >= len(segments) for turn in sampled):
        raise ValueError(f"ledger: a turn lies in a segment beyond the {len(segments)} there are")


def _returned(segment: Segment, turn: Turn) -> Completion:
    """What the engine returned in a turn, as the record has it."""
    part = slice(turn.start, turn.stop)
    return Completion(
        token_ids=segment.token_ids[part],
        logprobs=segment.rollout_logprobs[part],
        versions=segment.versions[part],
        finish_reason=turn.finish or "stop",
        kept=None if segment.kept is None else segment.kept[part],
        drawn=None if segment.drawn is None else segment.drawn.of_part(turn.start, turn.stop),
    )
