"""Groups to tensors, a step to optimizer batches, an optimizer batch to ranks and micro-batches.

Everything here is deterministic and moves whole rows: every row lands in exactly one place.
"""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf.batch import Batch
from rlhf.data.image_tokens import find_runs
from rlhf.data.images import distinct
from rlhf.data.steps import Decode, step_rewards
from rlhf.data.turns import turn_token_rewards
from rlhf.data.vision_model import VisionModel
from rlhf.errors import DataError, RewardError
from rlhf.image_codes import ImageCodes
from rlhf.types import Segment, Trajectory, TrajectoryGroup

Truncated = Literal["train", "mask", "drop"]
ATTENTION_TOKENS = 16_384
"""Row length at which attention costs about as much as everything else (12 hidden sizes of a 1.5 B model)."""


def pack(
    groups: Sequence[TrajectoryGroup],
    *,
    reward_parts: Sequence[str] = (),
    decode: Decode | None = None,
    truncated: Mapping[str, Truncated] | None = None,
    vision: VisionModel | None = None,
) -> Batch:
    """One row per segment, in group order, token for token as the engine saw them.

    `group_ids` are places in `groups`, `loss_mask` is the segments' `trained_mask`. `reward_parts` names the
    parts of the reward that become columns (NaN where a trajectory has no such part); `decode` asks for the
    rewards of steps. `truncated` says what becomes of a scenario's trajectories that a limit ended: trained (as where
    it says nothing), masked (in the baseline, not in the loss) or dropped (in neither). `vision` is the model's. Raises
    RewardError for a trajectory without a finite score, DataError for images unlike the runs of image tokens.
    """
    trajectories = [t for group in groups for t in group.trajectories]
    fates: list[Truncated] = [
        (truncated or {}).get(group.prompt.scenario, "train") for group in groups for _ in group.trajectories
    ]
    num_samples = [len(group.trajectories) for group in groups]
    num_segments = [len(t.segments) for t in trajectories]
    temperatures = [t.temperature for t in trajectories]
    segments = [segment for t in trajectories for segment in t.segments]
    lengths = np.fromiter((len(s.token_ids) for s in segments), np.int64, len(segments))
    num_tokens = int(lengths.sum())
    starts = np.cumsum(lengths) - lengths

    def per_token(values: Iterable[Sequence[Any]], dtype: type) -> Tensor:
        return torch.from_numpy(np.fromiter(chain.from_iterable(values), dtype, num_tokens))

    def per_row(values: Sequence[Any], dtype: type) -> Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values, dtype), num_segments))

    tokens = per_token((s.token_ids for s in segments), np.int64)
    segment_ids = torch.from_numpy(np.repeat(np.arange(len(segments)), lengths))
    images = distinct([s.images for s in segments])
    return Batch(
        tokens=tokens,
        positions=torch.from_numpy(np.arange(num_tokens) - np.repeat(starts, lengths)),
        segment_ids=segment_ids,
        loss_mask=per_token(_masks(trajectories, fates), np.bool_),
        rollout_logprobs=per_token((s.rollout_logprobs for s in segments), np.float32),
        versions=per_token((s.versions for s in segments), np.int64),
        rewards=per_row([_reward(t, fate) for t, fate in zip(trajectories, fates, strict=True)], np.float32),
        group_ids=per_row(np.repeat(np.arange(len(groups)), num_samples).tolist(), np.int64),
        truncated=per_row([t.status == "truncated" for t in trajectories], np.bool_),
        trajectory_ids=per_row(range(len(trajectories)), np.int64),
        temperatures=None if set(temperatures) <= {1.0} else per_row(temperatures, np.float32),
        token_rewards=turn_token_rewards(trajectories),
        step_rewards=None if decode is None else step_rewards(trajectories, decode),
        reward_parts=_reward_parts(trajectories, reward_parts, num_segments),
        routing=_routing(segments),
        kept_ids=_kept_ids(segments),
        images=images,
        image_ids=_image_ids(segments, images, (tokens, segment_ids), vision),
        banned=() if vision is None else vision.banned,
        image_codes=_image_codes(segments),
        code_mask=_code_mask(segments, starts, num_tokens),
    )


def _image_codes(segments: Sequence[Segment]) -> ImageCodes | None:
    """The rule by which all of them drew images; None where none may draw any."""
    rules = {None if s.drawn is None else s.drawn.rule for s in segments}
    if len(rules) > 1:
        raise DataError(
            f"segments of one batch were sampled by {len(rules)} rules for image codes: "
            f"{'; '.join(sorted(map(str, rules)))}. Expected one (sampling.image_codes)."
        )
    return next(iter(rules), None)


def _code_mask(segments: Sequence[Segment], starts: NDArray[np.int64], num_tokens: int) -> Tensor | None:
    """[N]: as Batch.code_mask; `starts` has where each segment begins."""
    if all(s.drawn is None for s in segments):
        return None
    found = torch.zeros(num_tokens, dtype=torch.bool)
    for start, segment in zip(starts.tolist(), segments, strict=True):
        for first, stop in () if segment.drawn is None else segment.drawn.spans:
            found[start + first : start + stop] = True
    return found


def _image_ids(
    segments: Sequence[Segment],
    images: Sequence[str],
    tokens: tuple[Tensor, Tensor],
    vision: VisionModel | None,
) -> Tensor | None:
    """[N]: as Batch.image_ids, of `tokens` (ids, rows)."""
    if not images:
        return None
    token_ids, segment_ids = tokens
    if vision is None:
        raise DataError(f"segments show {len(images)} images, and the model sees none")
    runs = find_runs(token_ids == vision.image_id, segment_ids)
    found = torch.bincount(segment_ids[runs.starts], minlength=len(segments)).tolist()
    for num_runs, segment in zip(found, segments, strict=True):
        if num_runs != len(segment.images):
            raise DataError(
                f"a segment shows {len(segment.images)} images in {num_runs} runs of image tokens, expected one run "
                "for each"
            )
    place = {reference: index for index, reference in enumerate(images)}
    of_run = torch.tensor([place[reference] for s in segments for reference in s.images])
    return torch.where(runs.of_token >= 0, of_run[runs.of_token], -1)


def _routing(segments: Sequence[Segment]) -> Tensor | None:
    """[N, L, k]; None where no segment has any."""
    shape = next((s.routing.shape[1:] for s in segments if s.routing is not None), None)
    if shape is None:
        return None
    rows = [np.full((len(s.token_ids), *shape), -1) if s.routing is None else s.routing for s in segments]
    return torch.from_numpy(np.concatenate(rows, dtype=np.int16))


def _kept_ids(segments: Sequence[Segment]) -> Tensor | None:
    """[N, K], K the size of the largest set; None where no segment has any."""
    if all(s.kept is None for s in segments):
        return None
    rows = [ids for s in segments for ids in s.kept or [np.empty(0, np.int32)] * len(s.token_ids)]
    sizes = np.array([len(ids) for ids in rows])
    kept_ids = np.full((len(rows), max(sizes.max(initial=0), 1)), -1, np.int32)
    kept_ids[np.arange(kept_ids.shape[1]) < sizes[:, None]] = np.concatenate(rows)
    return torch.from_numpy(kept_ids)


def split_minibatches(batch: Batch, num_minibatches: int, *, seed: int | None = None) -> list[Batch]:
    """Optimizer batches of equally many whole groups, in the step's order, or shuffled by `seed`.

    Raises DataError when the groups cannot be shared out equally.
    """
    if num_minibatches == 1:
        return [batch]
    group_ids = batch.group_ids.numpy()
    _, first, group = np.unique(group_ids, return_index=True, return_inverse=True)
    num_groups = len(first)
    if num_groups == 0 or num_groups % num_minibatches:
        raise DataError(
            f"{num_groups} groups cannot be split into {num_minibatches} equal mini-batches: make "
            "schedule.prompts_per_step a multiple of schedule.minibatches."
        )
    order = np.argsort(first)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    place = np.empty(num_groups, dtype=np.int64)
    place[order] = np.arange(num_groups)
    minibatch_of_row = (place // (num_groups // num_minibatches))[group]
    rows_of = [np.flatnonzero(minibatch_of_row == i) for i in range(num_minibatches)]
    if seed is not None:
        rows_of = [rows[np.argsort(place[group[rows]], kind="stable")] for rows in rows_of]
    return [batch.select_rows(torch.from_numpy(rows)) for rows in rows_of]


def split_microbatches(batch: Batch, *, ranks: int, budget_tokens: int) -> list[list[Batch]]:
    """[rank][micro]: the batches of `plan_microbatches`; some may be empty."""
    plan = plan_microbatches(batch, ranks=ranks, budget_tokens=budget_tokens)
    return [[batch.select_rows(rows) for rows in share] for share in plan]


def plan_microbatches(batch: Batch, *, ranks: int, budget_tokens: int) -> list[list[Tensor]]:
    """[rank][micro]: the rows of each micro-batch; every row once, rows that begin alike side by side.

    Every rank gets equally many micro-batches (empty ones if need be), of like cost at the same place, each
    of at most `budget_tokens` tokens, a shared beginning counted once: the fewest into which the longest-first
    greedy fits. Raises DataError for a row that exceeds the budget.
    """
    units, sizes, costs = _units(batch, most=budget_tokens, fair=batch.num_tokens // (4 * ranks))
    bins = _balanced_bins(sizes, costs, multiple=ranks, budget_tokens=budget_tokens)
    bins.sort(key=lambda members: -costs[members].sum())
    # Bins of like cost run at the same time; the order turns, so that no rank always gets the largest.
    rounds = [bins[i : i + ranks] for i in range(0, len(bins), ranks)]
    turned = [r if i % 2 == 0 else r[::-1] for i, r in enumerate(rounds)]
    rows = [[[row for unit in members for row in units[unit]] for members in r] for r in turned]
    return [[torch.tensor(r[rank], dtype=torch.int64) for r in rows] for rank in range(ranks)]


def _units(
    batch: Batch, *, most: int, fair: int
) -> tuple[list[list[int]], NDArray[np.int64], NDArray[np.float64]]:
    """(rows, tokens, cost) of what stays together: the rows of a group that begin alike, a row by itself.

    A unit is cut where it would exceed `most` tokens, or `fair` ones, so that ranks can be balanced.
    """
    lengths, group_ids = batch.row_lengths().numpy(), batch.group_ids.numpy()
    shares = (batch.origins() != torch.arange(batch.num_tokens)).long()
    shared = torch.zeros(batch.num_rows, dtype=torch.int64).index_add_(0, batch.segment_ids, shares).numpy()
    least = dict.fromkeys(group_ids.tolist(), 1 << 62)
    for group, of_row, leads in zip(group_ids.tolist(), shared.tolist(), _leads(group_ids), strict=True):
        least[group] = least[group] if leads else min(least[group], of_row)
    units: list[list[int]] = []
    sizes: list[int] = []
    open_unit: dict[int, int] = {}
    for row, (group, length) in enumerate(zip(group_ids.tolist(), lengths.tolist(), strict=True)):
        # Whichever row of the unit leads it, the others share at least what all rows of the group share.
        unit, own = open_unit.get(group), length - least[group]
        if unit is None or least[group] == 0 or sizes[unit] + own > min(most, max(fair, 1)):
            open_unit[group] = len(units)
            units.append([row])
            sizes.append(length)
        else:
            units[unit].append(row)
            sizes[unit] += own
    costs = np.array(sizes) + np.array([(lengths[rows] ** 2).sum() for rows in units]) / ATTENTION_TOKENS
    return units, np.array(sizes, dtype=np.int64), costs


def _leads(group_ids: NDArray[np.int64]) -> list[bool]:
    """Whether each row is the first of its group."""
    first = np.unique(group_ids, return_index=True)[1]
    leads: list[bool] = np.isin(np.arange(len(group_ids)), first).tolist()
    return leads


def _balanced_bins(
    lengths: NDArray[np.int64], costs: NDArray[np.float64], *, multiple: int, budget_tokens: int
) -> list[list[int]]:
    """Units of each bin: a multiple of `multiple` bins, each within the budget, of nearly equal cost."""
    longest = int(lengths.max(initial=0))
    if longest > budget_tokens:
        raise DataError(
            f"a row has {longest} tokens but learner.microbatch_tokens is {budget_tokens}: raise it, "
            "or lower sampling.max_tokens."
        )
    # So many units are longer than 1 / (j + 1) of the budget, and at most j of those fit into one bin.
    crowded = [float((lengths > budget_tokens / (j + 1)).sum()) / j for j in range(1, 9)]
    least = max([float(lengths.sum()) / budget_tokens, *crowded])
    num_bins = multiple * max(1, math.ceil(least / multiple))
    while (bins := _fill(lengths, costs, num_bins, budget_tokens=budget_tokens)) is None:
        num_bins += multiple
    return bins


def _fill(
    lengths: NDArray[np.int64], costs: NDArray[np.float64], num_bins: int, *, budget_tokens: int
) -> list[list[int]] | None:
    """Longest unit first into the bin of least cost; None where that breaks the budget."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    tokens = [0] * num_bins
    loads = [(0.0, chosen) for chosen in range(num_bins)]
    length_of, cost_of = lengths.tolist(), costs.tolist()
    for unit in np.argsort(-lengths, kind="stable").tolist():
        load, chosen = loads[0]
        tokens[chosen] += length_of[unit]
        if tokens[chosen] > budget_tokens:
            return None
        bins[chosen].append(unit)
        heapq.heapreplace(loads, (load + cost_of[unit], chosen))
    return bins


def _reward_parts(
    trajectories: Sequence[Trajectory], names: Sequence[str], num_segments: Sequence[int]
) -> Tensor | None:
    if not names:
        return None
    parts = [{} if t.reward is None else t.reward.parts for t in trajectories]
    columns = [[of_one.get(name, math.nan) for name in names] for of_one in parts]
    return torch.from_numpy(np.repeat(np.asarray(columns, np.float32), num_segments, axis=0))


def _masks(trajectories: Sequence[Trajectory], fates: Sequence[Truncated]) -> Iterable[Sequence[bool]]:
    for trajectory, fate in zip(trajectories, fates, strict=True):
        is_left_out = fate != "train" and trajectory.status == "truncated"
        for segment in trajectory.segments:
            yield [False] * len(segment.token_ids) if is_left_out else segment.trained_mask


def _reward(trajectory: Trajectory, truncated: Truncated) -> float:
    if truncated == "drop" and trajectory.status == "truncated":
        return math.nan
    if trajectory.reward is None:
        raise RewardError(f"sample {trajectory.sample_index} was not scored: score its group before packing")
    value = trajectory.reward.value
    if value is not None and not math.isfinite(value):
        raise RewardError(
            f"sample {trajectory.sample_index} has reward {value}: a reward is a finite number, "
            "or None where it could not be graded."
        )
    return math.nan if value is None else value
