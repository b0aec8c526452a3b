"""The signatures a reward function may have, how each is called, and what a returned value means.

Loaded in the reward workers: standard library only.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from rlhf.errors import DataError, LoadError
from rlhf.types import Outcome, Prompt, RewardResult, Trajectory, TrajectoryGroup

Kind = Literal["sample", "batch", "group", "trl", "verl"]
DETAIL_CHARACTERS = 2048
SIGNATURES = """\
  grade(completion, reference)                      one sample; also prompt, trajectory, any column
  grade(prompts, trajectories)                      a batch: one value per trajectory
  grade(group)                                      all attempts at one prompt: one value per trajectory
  grade(completions, **columns)                     TRL: lists, one value per completion; annotated
                                                    list[list[dict]], completions are messages
  grade(data_source, solution_str, ground_truth, extra_info)   verl: one sample"""
_ANNOTATE = "completions are texts here; for messages, annotate the parameter `completions: list[list[dict]]`"
_TRL_OFFERED = frozenset(
    {"prompts", "completions", "completion_ids", "reference", "trainer_state", "log_extra", "log_metric"}
)
_SAMPLE_OFFERED = frozenset({"prompt", "trajectory", "completion", "reference"})
_VERL_OFFERED = frozenset({"data_source", "solution_str", "ground_truth", "extra_info"})
_TOKEN_PARAMETERS = frozenset({"trajectory", "trajectories", "group", "completion_ids"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a reward function wants to be called. `columns` are the prompt columns it cannot do without."""

    kind: Kind
    columns: tuple[str, ...] = ()
    is_async: bool = False
    needs_tokens: bool = False

    @property
    def is_per_sample(self) -> bool:
        """Whether one call grades one trajectory."""
        return self.kind in ("sample", "verl")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFunction:
    """A loaded reward function and its shape; `call` and `call_batch` return what the user's function did."""

    function: Callable[..., Any]
    shape: Shape
    parameters: Mapping[str, inspect.Parameter]
    kwargs: Mapping[str, Any]

    def call(self, prompt: Prompt, trajectory: Trajectory) -> Any:
        """The raw value (or coroutine) of one sample, for per-sample shapes."""
        if self.shape.kind == "verl":
            offered = {
                "data_source": prompt.columns.get("data_source", ""),
                "solution_str": trajectory.completion,
                "ground_truth": prompt.reference,
                "extra_info": prompt.columns.get("extra_info", dict(prompt.columns)),
            }
            return self.function(**self._wanted(offered), **self.kwargs)
        offered = {
            **prompt.columns,
            "prompt": prompt,
            "trajectory": trajectory,
            "completion": trajectory.completion,
            "reference": prompt.reference,
        }
        return self.function(**self._wanted(offered), **self.kwargs)

    def call_batch(self, group: TrajectoryGroup) -> Any:
        """The raw values (or coroutine) of all trajectories, for the other shapes."""
        prompt, trajectories = group.prompt, group.trajectories
        size = len(trajectories)
        if self.shape.kind == "group":
            return self.function(group=group, **self.kwargs)
        if self.shape.kind == "batch":
            return self.function(prompts=[prompt] * size, trajectories=list(trajectories), **self.kwargs)
        chat = _is_chat(self.parameters["completions"].annotation, prompt)
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        texts = [t.completion for t in trajectories]
        offered = {name: [value] * size for name, value in prompt.columns.items()}
        offered |= {
            "prompts": [messages if chat else messages[-1]["content"]] * size,
            "completions": [[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
            "completion_ids": [_sampled_ids(t) for t in trajectories],
            "reference": [prompt.reference] * size,
        }
        unavailable = {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
        try:
            return self.function(**self._wanted(offered | unavailable), **self.kwargs)
        except TypeError as error:
            if chat or "string indices" not in str(error):
                raise
            raise TypeError(f"{error}: {_ANNOTATE}") from error

    def _wanted(self, offered: Mapping[str, Any]) -> dict[str, Any]:
        takes_all = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())
        wanted = {
            name: value
            for name, value in offered.items()
            if (name in self.parameters or takes_all) and name not in self.kwargs
        }
        missing = [c for c in self.shape.columns if c not in wanted]
        if missing:
            raise DataError(f"the prompt has no column {missing[0]!r}, which the reward function requires")
        return wanted


def bind(loaded: Callable[..., Any], kwargs: Mapping[str, Any], *, key: str) -> RewardFunction:
    """Give `loaded` its keyword arguments and find its shape; a class is instantiated with them.

    Raises LoadError, showing the accepted signatures, when the parameters fit none of them.
    """
    function, bound = (loaded(**kwargs), {}) if isinstance(loaded, type) else (loaded, dict(kwargs))
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise LoadError(f"{key}: {loaded!r} has no readable signature. Accepted:\n{SIGNATURES}") from error
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in bound if name not in parameters and not takes_all]
    if unknown:
        raise LoadError(
            f"{key}: kwargs names {unknown[0]!r}, but the function takes {', '.join(parameters)}."
        )
    shape = _detect(parameters, frozenset(bound), is_async=_is_async(function))
    if shape is None:
        raise LoadError(f"{key}: unknown signature {inspect.signature(function)}. Accepted:\n{SIGNATURES}")
    return RewardFunction(function=function, shape=shape, parameters=parameters, kwargs=bound)


def _detect(
    parameters: Mapping[str, inspect.Parameter], bound: frozenset[str], *, is_async: bool
) -> Shape | None:
    if any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in parameters.values()):
        return None
    named = {n: p for n, p in parameters.items() if n not in bound and p.kind is not p.VAR_KEYWORD}
    kind, offered = _kind(frozenset(named))
    if kind is None:
        return None
    columns = tuple(n for n, p in named.items() if n not in offered and p.default is p.empty)
    if columns and kind in ("batch", "group", "verl"):
        return None
    return Shape(
        kind=kind, columns=columns, is_async=is_async, needs_tokens=not _TOKEN_PARAMETERS.isdisjoint(named)
    )


def _kind(names: frozenset[str]) -> tuple[Kind | None, frozenset[str]]:
    known: list[tuple[Kind, frozenset[str], frozenset[str]]] = [
        ("group", frozenset({"group"}), frozenset({"group"})),
        ("batch", frozenset({"prompts", "trajectories"}), frozenset({"prompts", "trajectories"})),
        ("trl", frozenset({"completions"}), _TRL_OFFERED),
        ("verl", frozenset({"solution_str"}), _VERL_OFFERED),
        ("sample", frozenset({"completion"}), _SAMPLE_OFFERED),
        ("sample", frozenset({"trajectory"}), _SAMPLE_OFFERED),
    ]
    return next(((kind, offered) for kind, needed, offered in known if needed <= names), (None, frozenset()))


def _is_async(function: Callable[..., Any]) -> bool:
    call = type(function).__call__ if not inspect.isroutine(function) else function
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _is_chat(annotation: Any, prompt: Prompt) -> bool:
    """Whether TRL's completions are messages: as annotated, else as far as the prompt shows a message list."""
    if "dict" in str(annotation) or "str" in str(annotation):
        return "dict" in str(annotation)
    return len(prompt.messages) > 1 or prompt.messages[0].role != "user"


def _sampled_ids(trajectory: Trajectory) -> list[int]:
    return [
        token
        for segment in trajectory.segments
        for token, sampled in zip(segment.token_ids, segment.loss_mask, strict=True)
        if sampled
    ]


def _ignore(*_args: Any, **_kwargs: Any) -> None:
    """Stands in for TRL's logging callbacks."""


def as_results(values: Any, *, size: int, seconds: float) -> list[RewardResult]:
    """One RewardResult per sample of what a function of many returned. ValueError on a wrong length."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence):
        tolist = getattr(values, "tolist", None)  # arrays and tensors of the user's choice of library
        if tolist is None:
            raise ValueError(f"returned {_describe(values)}, expected a list of {size} numbers")
        values = tolist()
    if len(values) != size:
        raise ValueError(f"returned {len(values)} values for {size} samples, expected one per sample")
    return [as_result(value, seconds=seconds / size) for value in values]


def as_result(value: Any, *, seconds: float) -> RewardResult:
    """The RewardResult that a returned value means; a value that is no finite number becomes outcome `error`.

    None means not applicable. A dict is verl's: `score` is the value, its other numbers are parts; `steps`, if
    not a number, are (end, value) pairs.
    """
    try:
        if isinstance(value, RewardResult):
            return _checked(value, seconds)
        if value is None:
            return RewardResult(value=None, outcome="not_applicable", seconds=seconds)
        if isinstance(value, Mapping):
            if "score" not in value:
                raise ValueError(f"returned a dict without 'score' (keys {sorted(map(str, value))})")
            parts = {str(k): v for k, v in value.items() if k != "score" and isinstance(_plain(v), Real)}
            steps = () if "steps" in parts else value.get("steps") or ()
            return _checked(RewardResult(value=value["score"], parts=parts, steps=steps), seconds)
        return RewardResult(value=_number(value), seconds=seconds)
    except ValueError as error:
        return RewardResult(value=None, outcome="error", detail={"error": str(error)}, seconds=seconds)


def _checked(result: RewardResult, seconds: float) -> RewardResult:
    if result.outcome not in get_args(Outcome):
        raise ValueError(
            f"returned outcome {result.outcome!r}, expected one of {', '.join(get_args(Outcome))}"
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
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"returned {number}, expected a finite number, None or a RewardResult")
    return number


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:80]}"


def small(detail: Mapping[str, Any]) -> dict[str, str | float]:
    """`detail` with its texts cut so that all of them together stay within 2 kB."""
    kept: dict[str, str | float] = {}
    room = DETAIL_CHARACTERS
    for name, value in detail.items():
        entry = float(value) if isinstance(value, Real) else str(value)[: max(room, 0)]
        room -= len(entry) if isinstance(entry, str) else 0
        kept[str(name)] = entry
    return kept
