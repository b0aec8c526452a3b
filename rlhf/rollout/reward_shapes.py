"""The signatures a reward function may have, and how each is called.

Loaded in the reward workers: standard library only.
"""

import inspect
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from rlhf.errors import DataError, LoadError
from rlhf.types import Prompt, Trajectory, TrajectoryGroup

Kind = Literal["sample", "batch", "group", "trl", "verl", "openrlhf"]
SIGNATURES = """\
  grade(completion, reference)                      one sample; also prompt, trajectory, any column
  grade(prompts, trajectories)                      a batch: one value per trajectory
  grade(group)                                      all attempts at one prompt: one value per trajectory
  grade(completions, **columns)                     TRL: lists, one value per completion
  grade(data_source, solution_str, ground_truth, extra_info)   verl: one sample
  grade(queries, prompts, labels)                   OpenRLHF: lists, {rewards, scores, extra_logs}
Any of them may be async and may take a seeded random.Random as `random` or `rng`."""
_ANNOTATE = (
    "completions are texts where the prompt of a row is a text; for messages all the same, annotate the parameter "
    "`completions: list[list[dict]]`"
)
_TRL_IDS = frozenset({"completion_ids", "completions_ids"})
_TRL_OFFERED = _TRL_IDS | {
    *("prompts", "completions", "reference", "trainer_state", "log_extra", "log_metric"),
}
_OPENRLHF_OFFERED = frozenset({"queries", "prompts", "labels"})
_SAMPLE_OFFERED = frozenset({"prompt", "trajectory", "completion", "reference"})
_VERL_OFFERED = frozenset({"data_source", "solution_str", "ground_truth", "extra_info"})
_TOKEN_PARAMETERS = _TRL_IDS | {"trajectory", "trajectories", "group"}
_GENERATORS = frozenset({"random", "rng"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """What TRL's `trainer_state` says here. Both are 0 where unknown (in `rlhf check`)."""

    global_step: int = 0
    """Weight version that sampled the completions = optimizer steps of the loop before it."""
    max_steps: int = 0
    """schedule.num_steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLog:
    """What a TRL function of `size` samples logs during one call."""

    size: int
    columns: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def log_extra(self, column: str, values: Any) -> None:
        """TRL's: a column of the samples' detail. ValueError unless there is one value per sample."""
        listed = list(values)
        if len(listed) != self.size:
            raise ValueError(f"log_extra({column!r}, ...) got {len(listed)} values for {self.size} samples")
        self.columns[str(column)] = listed

    def log_metric(self, name: str, value: Any) -> None:
        """TRL's: a number, averaged over the calls of a step. ValueError for anything else."""
        number = value.item() if getattr(value, "ndim", None) == 0 else value
        if not isinstance(number, Real):
            raise ValueError(f"log_metric({name!r}, ...) got {value!r:.80}, expected a number")
        self.metrics.setdefault(str(name), []).append(float(number))


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
                "ground_truth": _ground_truth(prompt),
                "extra_info": prompt.columns.get("extra_info", dict(prompt.columns)),
            }
        else:
            offered = {
                **prompt.columns,
                "prompt": prompt,
                "trajectory": trajectory,
                "completion": trajectory.completion,
                "reference": prompt.reference,
            }
        return self._call(offered, seed=trajectory.seed)

    def call_batch(
        self, group: TrajectoryGroup, *, state: TrainerState | None = None, log: CallLog | None = None
    ) -> Any:
        """The raw values (or coroutine) of all trajectories, for the other shapes."""
        prompt, trajectories = group.prompt, list(group.trajectories)
        size, seed = len(trajectories), trajectories[0].seed
        if self.shape.kind == "group":
            return self._call({"group": group}, seed=seed)
        if self.shape.kind == "batch":
            return self._call({"prompts": [prompt] * size, "trajectories": trajectories}, seed=seed)
        texts = [t.completion for t in trajectories]
        if self.shape.kind == "openrlhf":
            text = "\n".join(message.content for message in prompt.messages)
            labels = [prompt.reference or ""] * size
            offered = {"queries": [text + t for t in texts], "prompts": [text] * size, "labels": labels}
            return self._call(offered, seed=seed)
        log = CallLog(size=size) if log is None else log
        callbacks = {"log_extra": log.log_extra, "log_metric": log.log_metric}
        return self._call_trl(group, {"trainer_state": state or TrainerState(), **callbacks})

    def _call_trl(self, group: TrajectoryGroup, given: Mapping[str, Any]) -> Any:
        prompt, trajectories = group.prompt, group.trajectories
        size = len(trajectories)
        parameter = self.parameters.get("completions")
        chat = prompt.is_chat if parameter is None else _is_chat(parameter.annotation, prompt)
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        texts = [t.completion for t in trajectories]
        ids = [_sampled_ids(t) for t in trajectories]
        offered: dict[str, Any] = {name: [value] * size for name, value in prompt.columns.items()}
        offered |= {
            "prompts": [messages if chat else messages[-1]["content"]] * size,
            "completions": [[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
            "completion_ids": ids,
            "reference": [prompt.reference] * size,
        }
        if "completions_ids" in self.parameters:
            offered["completions_ids"] = ids
        try:
            return self._call({**offered, **given}, seed=trajectories[0].seed)
        except TypeError as error:
            if chat or "string indices" not in str(error):
                raise
            raise TypeError(f"{error}: {_ANNOTATE}") from error

    def _call(self, offered: Mapping[str, Any], *, seed: int) -> Any:
        """Call with what is asked for of `offered`; chance, asked for or global, follows from `seed`."""
        takes_all = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())
        wanted = {
            name: value
            for name, value in offered.items()
            if (name in self.parameters or takes_all) and name not in self.kwargs
        }
        missing = [c for c in self.shape.columns if c not in wanted]
        if missing:
            raise DataError(f"the prompt has no column {missing[0]!r}, which the reward function requires")
        for name in _GENERATORS & self.parameters.keys() - self.kwargs.keys():
            wanted[name] = random.Random(seed)
        _seed_globals(seed)
        return self.function(**wanted, **self.kwargs)


def bind(loaded: Callable[..., Any], kwargs: Mapping[str, Any], *, key: str) -> RewardFunction:
    """Give `loaded` its keyword arguments and find its shape; a class is instantiated with them.

    Raises LoadError for a lambda or a closure and, showing the accepted signatures, for parameters that fit none.
    """
    _refuse_nameless(loaded, key=key)
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
    if columns and kind not in ("sample", "trl"):
        return None
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names_tokens = not _TOKEN_PARAMETERS.isdisjoint(named)
    return Shape(
        kind=kind,
        columns=columns,
        is_async=is_async,
        needs_tokens=names_tokens or (takes_all and kind in ("sample", "trl")),
    )


def _kind(names: frozenset[str]) -> tuple[Kind | None, frozenset[str]]:
    known: list[tuple[Kind, frozenset[str], frozenset[str]]] = [
        ("group", frozenset({"group"}), frozenset({"group"})),
        ("batch", frozenset({"prompts", "trajectories"}), frozenset({"prompts", "trajectories"})),
        ("openrlhf", frozenset({"queries"}), _OPENRLHF_OFFERED),
        ("trl", frozenset({"completions"}), _TRL_OFFERED),
        *(("trl", frozenset({name}), _TRL_OFFERED) for name in sorted(_TRL_IDS)),
        ("verl", frozenset({"solution_str"}), _VERL_OFFERED),
        ("sample", frozenset({"completion"}), _SAMPLE_OFFERED),
        ("sample", frozenset({"trajectory"}), _SAMPLE_OFFERED),
    ]
    found = ((kind, offered | _GENERATORS) for kind, needed, offered in known if needed <= names)
    return next(found, (None, frozenset()))


def _refuse_nameless(loaded: Callable[..., Any], *, key: str) -> None:
    name = getattr(loaded, "__qualname__", "")
    if "<lambda>" in name or "<locals>" in name:
        what = "a lambda" if "<lambda>" in name else "made inside a function"
        raise LoadError(
            f"{key}.use names {name}, which is {what}. Rewards are imported by name in processes of their own: "
            "expected a function or class at the top level of its module, with its settings in kwargs."
        )


def _is_async(function: Callable[..., Any]) -> bool:
    call = type(function).__call__ if not inspect.isroutine(function) else function
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _is_chat(annotation: Any, prompt: Prompt) -> bool:
    """Whether TRL's completions are messages: as annotated, else as the row's prompt is."""
    if "dict" in str(annotation) or "str" in str(annotation):
        return "dict" in str(annotation)
    return prompt.is_chat


def _ground_truth(prompt: Prompt) -> Any:
    """verl's: as it stands in the row's `reward_model`, else the reference."""
    model = prompt.columns.get("reward_model")
    has_one = isinstance(model, Mapping) and "ground_truth" in model
    return model["ground_truth"] if has_one else prompt.reference  # type: ignore[index]


def _seed_globals(seed: int) -> None:
    """Seed the global generators of the libraries that are loaded, so that a call repeats."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _sampled_ids(trajectory: Trajectory) -> list[int]:
    return [
        token
        for segment in trajectory.segments
        for token, sampled in zip(segment.token_ids, segment.loss_mask, strict=True)
        if sampled
    ]
