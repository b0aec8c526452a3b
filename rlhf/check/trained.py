"""Rows that a model is trained on as they are: demonstrations and preference pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.check.report import Checking, Finding, num_of
from rlhf.check.task import read_source, rendering_of
from rlhf.config.schema import ModelConfig
from rlhf.config.stage_kinds import RenderedTask
from rlhf.config.task import SourceConfig, TaskConfig
from rlhf.config.trainer import DpoConfig, RewardModelConfig, SftConfig
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError, ModelError
from rlhf.stages.model_folder import tokenizer_path
from rlhf.stages.preference_rows import check_pair, margin_of, pair_rows
from rlhf.stages.sft import check_demonstration, tokenised_rows
from rlhf.stages.trained_rows import that_fit
from rlhf.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """How prompts are shown to the model that learns."""

    model: ModelConfig
    task: TaskConfig | RenderedTask

    def renderer(self) -> Renderer | None:
        """What renders, where the model is a folder on this machine."""
        if not self._is_here:
            return None
        return Renderer(
            model_folder=str(self.model.path),
            tokenizer_path=tokenizer_path(self.model),
            template=self.task.template,
            system_prompt=self.task.system_prompt,
            chat_template=self.model.chat_template,
            trust_remote_code=self.model.trust_remote_code,
        )

    def identity(self) -> list[Any]:
        """What decides how rows are rendered; nothing where they are not."""
        if not self._is_here:
            return []
        return [*rendering_of(self.model), self.task.template, self.task.system_prompt]

    @property
    def _is_here(self) -> bool:
        return self.model.path is not None and Path(self.model.path).is_dir()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learned:
    """A source of rows to learn from."""

    key: str
    source: SourceConfig
    what: str
    check: Callable[[Prompt, str], None]
    """DataError, beginning with the second argument, for a row that cannot be learned."""
    tokenise: Callable[[Sequence[Prompt], Renderer], object]
    """DataError or ModelError for rows that do not become tokens, or too many."""
    limits: tuple[object, ...]
    """What else decides that."""


def check_demonstrations(config: SftConfig, shown: Shown, checking: Checking) -> None:
    """Every source of a fine-tuning: rows are read, and have a `completion` or `messages`."""

    def check(prompt: Prompt, where: str) -> None:
        check_demonstration(prompt, where=where)

    def tokenise(prompts: Sequence[Prompt], renderer: Renderer) -> None:
        rows = tokenised_rows(prompts, renderer, key="sft")
        lengths = [(f"row {p.id}", len(ids)) for p, (ids, _) in zip(prompts, rows, strict=True)]
        that_fit(lengths, limit=config.max_length, on_long=config.on_long, key="sft")

    limits = (config.max_length, config.on_long)
    for key, source in config.sources.items():
        one = _Learned(
            key=key, source=source, what="demonstration", check=check, tokenise=tokenise, limits=limits
        )
        _look(one, shown, checking)


def check_pairs(
    config: DpoConfig | RewardModelConfig, shown: Shown, checking: Checking, *, kind: str
) -> None:
    """Both sources of a preference training: rows are read, and have two different answers."""
    margin = margin_of(config)

    def check(prompt: Prompt, where: str) -> None:
        check_pair(prompt, margin=margin, where=where)

    def tokenise(prompts: Sequence[Prompt], renderer: Renderer) -> None:
        pair_rows(prompts, config, renderer=renderer, key=kind)

    limits = (config.max_length, config.on_long, margin)
    for name, source in (("source", config.source), ("heldout", config.heldout)):
        if source is not None:
            key = f"{kind}.{name}"
            one = _Learned(key=key, source=source, what="pair", check=check, tokenise=tokenise, limits=limits)
            _look(one, shown, checking)


def _look(one: _Learned, shown: Shown, checking: Checking) -> None:
    report, rendering = checking.report, shown.identity()
    identity = {
        "source": one.source.model_dump(mode="json"),
        "what": one.what,
        "rendering": rendering,
        "limits": one.limits if rendering else (),
    }
    if place := checking.seen_at(identity, one.key):
        report.say(one.key, f"the same rows as in {place}: not checked again")
        return
    rows = []
    for prompt in read_source(one.source, one.key, checking):
        try:
            one.check(prompt, f"{one.key}: row {prompt.id}")
        except DataError as error:
            kind = f"row is no {one.what}"
            report.findings.append(Finding(kind=kind, row=prompt.id, reason=str(error)))
        else:
            rows.append(prompt)
    if not rows:
        return
    report.say(one.key, num_of(len(rows), one.what), rows=len(rows))
    try:
        renderer = shown.renderer()
        if renderer is not None:
            one.tokenise(rows, renderer)
    except (DataError, ModelError) as error:
        report.findings.append(Finding(kind="rows cannot be tokenised", row="", reason=str(error)))
