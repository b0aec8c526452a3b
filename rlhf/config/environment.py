"""`task.environment`: what an episode is played in, and how far it may go."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from rlhf.config.section import Count, Positive, Section


class EpisodeLimits(Section):
    """How far one episode may go. A row's column `limits` may tighten them, never widen."""

    max_turns: PositiveInt = 32
    """Turns of the model."""
    max_tokens: PositiveInt = 8_192
    """Tokens of a context: the prompt and everything after it. A turn has sampling.max_tokens at most."""
    max_sampled_tokens: PositiveInt | None = None
    """Tokens sampled in all turns; none: as many as fit."""
    max_tool_calls: PositiveInt = 128
    max_parallel_calls: PositiveInt = 16
    """Calls of one turn; the others get an error message each."""
    max_tool_result_bytes: PositiveInt = 32_768
    """A longer result is cut in its middle, visibly."""
    max_tool_result_tokens: PositiveInt = 4_096
    max_parse_errors: PositiveInt = 3
    """Turns in a row of which no call could be read or executed."""
    setup_s: Positive = 60.0
    """`reset`."""
    tool_s: Positive = 30.0
    """One tool call."""
    step_s: Positive = 120.0
    """`step`, its tool calls together."""
    score_s: Positive = 60.0
    """`score`."""
    episode_s: Positive = 1_800.0
    """Everything but the score."""
    memory_mb: PositiveInt = 1_024
    """Address space beyond what the environment's process began with."""
    disk_mb: PositiveInt = 256
    """Of any one file that the environment's process writes."""

    def tightened(self, changes: dict[str, Any]) -> "EpisodeLimits":
        """These limits with the lower of each. ValueError for a name that is none of them."""
        asked = EpisodeLimits.model_validate(changes).model_dump(include=set(changes))
        mine = self.model_dump()
        lower = {name: min(value, mine[name] or value) for name, value in asked.items() if value is not None}
        return self.model_copy(update=lower)


class EnvironmentConfig(Section):
    """The environment that a task's prompts are played in."""

    use: str
    """`module:attribute`: a class with `reset` and `step`, an async function (prompt, model, context), or an object."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class or function."""
    weight: Positive = 1.0
    """Of the environment's own score beside task.rewards."""
    limits: EpisodeLimits = EpisodeLimits()
    history: Literal["append", "template"] = "append"
    """append: what was sampled stays in the context. template: where the chat template drops it (thinking, at a new
    user message), a new segment begins as the template would have it."""
    compaction: Literal["none", "summary", "discard_75", "discard_all"] = "none"
    """What becomes of a context that is nearly full: summarised by the model, or its oldest turns left out."""
    compaction_at: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of limits.max_tokens at which that happens."""
    tool_syntax: str = "auto"
    """How calls are written: hermes, qwen_xml, glm4, llama3, deepseek_v3, mistral, pythonic, none, or `vllm:NAME` for
    one of vLLM's parsers. auto: as the chat template writes them."""
    on_tool_timeout: Literal["message", "end"] = "message"
    """message: state goes back to before the call, and the model is told. end: the episode ends."""
    truncated: Literal["train", "mask", "drop"] = "train"
    """An episode that hit a limit: trained as graded, left out of the loss but not of the baseline, or left out."""
    score_truncated: bool = True
    """Whether such an episode's final state is scored; otherwise it has its turn rewards alone."""
    retries: Count = 2
    """New tries, with the same seed, of an episode that ended in an error."""
    min_group: PositiveInt | None = None
    """Fewest graded samples with which a group is trained; default: half of them, and 2."""
    max_live: PositiveInt = 256
    """Episodes at the same time."""
    lockstep: bool | None = None
    """Sample the turns of all episodes in rounds, so that a run is repeatable bit for bit whatever takes how long. A
    round waits at most 5 s for an environment. An episode that asks for two turns at once (forks, requests side by
    side) is not held back, and not repeatable. Default: in synchronous runs on a CPU."""

    def least_graded(self, num_samples: int) -> int:
        """Graded samples without which a group of `num_samples` is skipped."""
        return self.min_group or -(-num_samples // 2)
