"""Tasks of reasoning-gym: a question, an answer, a verdict by the package's own code, without end.

Any of its generators; their settings are keywords of `rows`:

    train: {generator: "envs.adapters.reasoning_gym:rows", kwargs: {name: basic_arithmetic, size: 4000, max_terms: 3}}
    environment: {use: "envs.adapters.reasoning_gym:ReasoningGym"}

A row says how its task was drawn (column `reasoning_gym`); the task is drawn again where it is graded.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal

from envs.answers import final_answer
from rlhf.errors import DataError, DependencyError, EpisodeError
from rlhf.interfaces import Context
from rlhf.types import Message, Prompt, RewardResult, Step, Trajectory

SEED_STRIDE = 10**9
"""Most generators draw task i of seed s from s + i: neighbouring seeds would share their tasks."""
_DRAWS = 100
"""For each row that a split asks for."""

_MOST_CHARACTERS = 2000
_LIST = re.compile(r"(?!.*\bfor\b)[\w\s\[\],'\".-]*\Z", re.DOTALL)
_ARITHMETIC = re.compile(r"(?!.*\*\s*\*)[\d\s+*/().-]*\Z", re.DOTALL)
_NAMES = r"a?(?:sin|cos|tan)h?|cot|sec|csc|exp|log|ln|sqrt|pi|Abs|[A-Za-z]"
_POWER = r"\*\*\s*(?:-?\d{1,2}(?![\w.])|[a-z](?!\w)|\(\s*-?\s*\d{1,2}\s*(?:/\s*\d{1,2}\s*)?\))(?!\s*\*\s*\*)"
_FORMULA = re.compile(
    rf"(?:\d{{1,12}}(?:\.\d{{0,12}})?(?![\w.])|(?:{_NAMES})(?!\w)"
    rf"|(?:{_POWER})|\*(?!\s*\*)|[-+/(),\s])*\Z",
    re.DOTALL,
)
GRAMMARS: Mapping[str, re.Pattern[str]] = {
    **dict.fromkeys(("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"), _LIST),
    **dict.fromkeys(("countdown", "puzzle24"), _ARITHMETIC),
    **dict.fromkeys(
        ("intermediate_integration", "polynomial_multiplication", "simple_integration"), _FORMULA
    ),
}
"""Generators whose verdict runs the answer as Python (0.1.25): what it may then be made of. Anything else is wrong."""

REFUSED: Mapping[str, str] = {
    "composite": "name one of its parts",
    "game_of_life_halting": "it calls every text the right answer of a task that halts",
    "list_functions": "it draws another task for the same seed each time",
}
"""Generators (0.1.25) that cannot be used, and why."""


def rows(
    seed: int = 0,
    size: int = 1000,
    *,
    name: str,
    split: Literal["train", "heldout"] | None = None,
    **config: Any,
) -> list[dict[str, Any]]:
    """Rows {id, prompt, reference, reasoning_gym} of the generator `name`, which takes `config`.

    With `split`, tasks are distinct and belong to one split for ever, by the hash of their question: one in eight is
    held out. DataError for an unknown generator or setting, or where there are too few tasks.
    """
    drawn = {
        "name": name,
        "seed": seed * SEED_STRIDE,
        "size": size * (_DRAWS if split else 1),
        "config": config,
    }
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for index, entry in _draw(drawn):
        question = str(entry["question"])
        if split is not None and (question in seen or _split(question) != split):
            continue
        seen.add(question)
        answer = entry["answer"]
        row = {"id": f"{name}-{seed}-{index}", "prompt": question, "reasoning_gym": {**drawn, "index": index}}
        found.append(row | ({} if answer is None else {"reference": str(answer)}))
        if len(found) == size:
            return found
    raise DataError(
        f"rows: reasoning-gym's {name!r} gave only {len(found)} distinct tasks for split {split!r}, expected {size}: "
        "lower the size or widen the generator's settings."
    )


def demonstrations(
    seed: int = 0, size: int = 1000, *, name: str, careless: float = 0.0, **config: Any
) -> list[dict[str, Any]]:
    """Rows of `rows` with the answer as `completion`; a share `careless` has another row's: data of mixed quality.

    DataError for a generator that tells no answer.
    """
    found = rows(seed, size, name=name, **config)
    if any("reference" not in row for row in found):
        raise DataError(
            f"demonstrations: reasoning-gym's {name!r} tells no answers, only whether one is right."
        )
    rng = random.Random(seed)
    return [
        row | {"completion": (rng.choice(found) if rng.random() < careless else row)["reference"]}
        for row in found
    ]


class ReasoningGym:
    """Ends with the model's first turn, which the generator's own verdict scores.

    A verdict below `threshold` counts 0: some generators pay a little for a blank answer. `tag`: the answer is what
    the last <tag>...</tag> holds, and not the whole turn.
    """

    def __init__(self, *, threshold: float = 1.0, tag: str | None = None) -> None:
        if not 0 <= threshold <= 1:
            raise DataError(f"ReasoningGym: threshold is {threshold}, expected 0 to 1.")
        self._threshold = threshold
        self._tag = tag

    def reset(self, prompt: Prompt, context: Context) -> None:  # noqa: ARG002 -- the protocol's
        """The prompt's own messages. EpisodeError for a row that cannot be graded."""
        _task(prompt)

    def step(self, action: Message, context: Context) -> Step:  # noqa: ARG002 -- the protocol's
        """The end."""
        return Step(terminated=True)

    def score(self, context: Context) -> dict[str, float]:
        """The value of the answer, and reasoning-gym's own verdict as `raw`."""
        result = _graded(context.prompt, final_answer(context), threshold=self._threshold, tag=self._tag)
        return {"score": float(result.value or 0.0), "raw": float(result.detail["raw"])}


def verify(
    prompt: Prompt, trajectory: Trajectory, *, threshold: float = 1.0, tag: str | None = None
) -> RewardResult:
    """The same as a reward of `rows`, for tasks without an environment."""
    return _graded(prompt, trajectory.completion, threshold=threshold, tag=tag)


def warm_up() -> None:
    """Import reasoning-gym before the first deadline runs."""
    _package()


def _graded(prompt: Prompt, text: str, *, threshold: float, tag: str | None) -> RewardResult:
    dataset, entry, name = _task(prompt)
    answer = _answer(text, tag)
    if answer is None or not _is_safe(answer, name):
        return RewardResult(value=0.0, outcome="unparsable", detail={"raw": 0.0})
    try:
        raw = float(dataset.score_answer(answer, entry))
    except Exception as error:
        if not _grades_its_own(dataset, entry):
            raise EpisodeError(
                f"prompt {prompt.id}: reasoning-gym's {name!r} cannot grade: {error!r}"
            ) from error
        return RewardResult(value=0.0, outcome="unparsable", detail={"raw": 0.0})
    value = raw if raw >= threshold else 0.0
    return RewardResult(value=value, outcome="ok" if value else "wrong", detail={"raw": raw})


def _answer(text: str, tag: str | None) -> str | None:
    if tag is None:
        return text.strip()
    _, opened, rest = text.rpartition(f"<{tag}>")
    answer, closed, _ = rest.partition(f"</{tag}>")
    return answer.strip() if opened and closed else None


def _is_safe(answer: str, name: str) -> bool:
    """Whether the verdict may run it: no calls but of known functions, no numbers that take for ever."""
    grammar = GRAMMARS.get(name)
    if grammar is None:
        return True
    num_towers = len(re.findall(r"\)\s*\*\s*\*", answer))
    return len(answer) <= _MOST_CHARACTERS and num_towers <= 2 and grammar.match(answer) is not None


def _grades_its_own(dataset: Any, entry: Mapping[str, Any]) -> bool:
    """Whether it was the model's answer that could not be graded."""
    try:
        dataset.score_answer(entry["answer"] or "", entry)
    except Exception:  # noqa: BLE001 -- as above
        return False
    return True


def _task(prompt: Prompt) -> tuple[Any, Mapping[str, Any], str]:
    """The generator and the task. EpisodeError unless it is the one that the row asks."""
    drawn = prompt.columns.get("reasoning_gym")
    try:
        dataset, entry = _again(json.dumps(drawn))
        name = str((drawn or {})["name"])
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"row {prompt.id}: its column `reasoning_gym` is {drawn!r:.200}, expected what `rows` of "
            f"envs.adapters.reasoning_gym wrote ({error!r})."
        ) from error
    if entry["question"] not in prompt.messages[-1].content:
        raise EpisodeError(
            f"row {prompt.id}: drawn again, reasoning-gym's {name!r} asks {entry['question']!r:.80}, but the row "
            f"{prompt.messages[-1].content!r:.80}: it was made by another version. Make the rows anew."
        )
    return dataset, entry, name


@lru_cache(maxsize=256)
def _again(drawn: str) -> tuple[Any, Mapping[str, Any]]:
    told = json.loads(drawn)
    dataset = _dataset(told)
    return dataset, dataset[told["index"]]


def _draw(drawn: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    dataset = _dataset(drawn)
    return ((index, dataset[index]) for index in range(len(dataset)))


def _dataset(drawn: Mapping[str, Any]) -> Any:
    package, name = _package(), drawn["name"]
    if name in REFUSED:
        raise DataError(f"rows: reasoning-gym's {name!r} cannot be used: {REFUSED[name]}.")
    known = set(package.factory.DATASETS) - set(REFUSED)
    if name not in known:
        raise DataError(
            f"rows: reasoning-gym has no generator {name!r}, expected one of {', '.join(sorted(known))}."
        )
    try:
        return package.create_dataset(name, seed=drawn["seed"], size=drawn["size"], **drawn["config"])
    except (TypeError, AssertionError, ValueError) as error:
        raise DataError(
            f"rows: reasoning-gym's {name!r} refuses the settings {drawn['config']}: {error}"
        ) from error


def _package() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise DependencyError(
            "this environment needs the package `reasoning-gym`: install the extra `content` "
            "(pip install 'rlhf-loop[content]')."
        ) from error
    return reasoning_gym


def _split(question: str) -> Literal["train", "heldout"]:
    return "heldout" if sha256(question.encode()).digest()[0] < 32 else "train"
