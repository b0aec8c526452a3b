"""What a value that a reward function returned means. Loaded in the reward workers: standard library only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, get_args

from rlhf.types import Outcome, RewardResult

DETAIL_CHARACTERS = 2048
_WITHOUT_VALUE: tuple[Outcome, ...] = ("not_applicable", "timeout", "error")


def as_results(
    values: Any, *, size: int, seconds: float, extra: Mapping[str, Sequence[Any]] | None = None
) -> list[RewardResult]:
    """One RewardResult per sample of what a function of many returned. ValueError on a wrong length.

    A dict is OpenRLHF's: `rewards` are the values, numbers of `scores` and `extra_logs` are parts. `extra` are
    further columns, one entry per sample, for the detail.
    """
    if isinstance(values, Mapping):
        return _of_openrlhf(values, size=size, seconds=seconds / size)
    listed = _listed(values)
    if listed is None:
        raise ValueError(f"returned {_describe(values)}, expected a list of {size} numbers")
    if len(listed) != size:
        raise ValueError(f"returned {len(listed)} values for {size} samples, expected one per sample")
    results = [as_result(value, seconds=seconds / size) for value in listed]
    if not extra:
        return results
    return [
        replace(r, detail=small({**r.detail, **{name: column[i] for name, column in extra.items()}}))
        for i, r in enumerate(results)
    ]


def as_result(value: Any, *, seconds: float) -> RewardResult:
    """The RewardResult that a returned value means; a value that is no finite number becomes outcome `error`.

    None means not applicable. A dict is verl's: `score` is the value, its other numbers are parts, its texts
    detail; `steps`, if not a number, are (end, value) pairs.
    """
    try:
        if isinstance(value, RewardResult):
            return _checked(value, seconds)
        if value is None:
            return RewardResult(value=None, outcome="not_applicable", seconds=seconds)
        if isinstance(value, Mapping):
            if "score" not in value:
                raise ValueError(f"returned a dict without 'score' (keys {sorted(map(str, value))})")
            logs = {str(name): of_it for name, of_it in value.items() if name != "score"}
            steps = () if _is_number(logs.get("steps")) else logs.pop("steps", None) or ()
            return _checked(replace(_with_logs(value["score"], logs), steps=steps), seconds)
        return RewardResult(value=_number(value), seconds=seconds)
    except ValueError as error:
        return RewardResult(value=None, outcome="error", detail={"error": str(error)}, seconds=seconds)


def _of_openrlhf(values: Mapping[str, Any], *, size: int, seconds: float) -> list[RewardResult]:
    if "rewards" not in values:
        raise ValueError(f"returned a dict without 'rewards' (keys {sorted(map(str, values))})")
    rewards = _one_each("rewards", values["rewards"], size)
    logs = dict(values.get("extra_logs") or {})
    if values.get("scores") is not None:
        logs["scores"] = values["scores"]
    columns = {str(name): _one_each(name, value, size) for name, value in logs.items()}
    results = []
    for index, reward in enumerate(rewards):
        result = as_result(reward, seconds=seconds)
        if result.value is not None:
            logged = _with_logs(reward, {name: column[index] for name, column in columns.items()})
            result = _checked(logged, seconds)
        results.append(result)
    return results


def _one_each(name: str, value: Any, size: int) -> Sequence[Any]:
    """`value` as one entry per sample; a single number counts for all."""
    listed = _listed(value)
    if listed is None:
        return [value] * size
    if len(listed) != size:
        raise ValueError(f"returned {len(listed)} {name!r} for {size} samples, expected one per sample")
    return listed


def _listed(values: Any) -> Sequence[Any] | None:
    """The list in a sequence, array or tensor; None if it is none."""
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return values
    tolist = getattr(values, "tolist", None)  # of arrays and tensors of the user's choice of library
    listed = None if tolist is None else tolist()
    return listed if isinstance(listed, list) else None


def _with_logs(value: Any, logs: Mapping[str, Any]) -> RewardResult:
    parts = {name: number for name, number in logs.items() if _is_number(number)}
    texts = {name: text for name, text in logs.items() if isinstance(text, str)}
    return RewardResult(value=value, parts=parts, detail=texts)


def _is_number(value: Any) -> bool:
    return isinstance(_plain(value), Real)


def _checked(result: RewardResult, seconds: float) -> RewardResult:
    if result.outcome not in get_args(Outcome):
        raise ValueError(
            f"returned outcome {result.outcome!r}, expected one of {', '.join(get_args(Outcome))}"
        )
    if (result.value is None) != (result.outcome in _WITHOUT_VALUE):
        raise ValueError(
            f"returned value {result.value!r} with outcome {result.outcome!r}: what failed or does not apply has the "
            f"value None and one of the outcomes {', '.join(_WITHOUT_VALUE)}, anything else a number"
        )
    return RewardResult(
        value=None if result.value is None else _number(result.value),
        outcome=result.outcome,
        parts={str(name): _number(part) for name, part in result.parts.items()},
        detail=small(result.detail),
        seconds=seconds,
        steps=tuple(_step(step) for step in _pairs(result.steps)),
    )


def _pairs(steps: Any) -> Sequence[Any]:
    if isinstance(steps, str) or not isinstance(steps, Sequence):
        raise ValueError(f"returned steps {steps!r}, expected a list of (end, value) pairs")
    return steps


def _step(step: Any) -> tuple[int, float]:
    if isinstance(step, str) or not isinstance(step, Sequence) or len(step) != 2:
        raise ValueError(f"returned the step {step!r}, expected a pair (end, value)")
    end, value = step
    if not isinstance(_plain(end), int):
        raise ValueError(f"returned a step that ends at {end!r}, expected a number of characters")
    return int(end), _number(value)


def _plain(value: Any) -> Any:
    """The Python number in a scalar of NumPy or of a tensor library; anything else as it is."""
    is_single = not isinstance(value, Real) and getattr(value, "ndim", None) == 0
    return value.item() if is_single else value


def _number(value: Any) -> float:
    value = _plain(value)
    if not isinstance(value, Real):
        raise ValueError(f"returned {_describe(value)}, expected a finite number, None or a RewardResult")
    if not _is_finite(value):
        raise ValueError(f"returned {str(value)[:80]}, expected a finite number, None or a RewardResult")
    return float(value)


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:80]}"


def small(detail: Mapping[str, Any], *, room: int = DETAIL_CHARACTERS) -> dict[str, str | float]:
    """`detail` with its texts cut so that all of them together have at most `room` characters."""
    kept: dict[str, str | float] = {}
    for name, value in detail.items():
        is_number = isinstance(value, Real) and _is_finite(value)
        entry = float(value) if is_number else str(value)[: max(room, 0)]
        room -= len(entry) if isinstance(entry, str) else 0
        kept[str(name)] = entry
    return kept
