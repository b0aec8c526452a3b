"""An episode's context whose link writes down what it is told, and says which calls hung."""

from dataclasses import dataclass, field

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.context import EpisodeContext, Start
from rlhf.types import Message, Prompt, ToolCall


@dataclass
class RecordingLink:
    hung: frozenset[str] = frozenset()
    told: list[tuple[str, object]] = field(default_factory=list)
    limits_s: dict[str, float] = field(default_factory=dict)

    def enter(self, phase, name, limit_s):
        self.told.append(("enter", name))
        self.limits_s[name] = limit_s

    def leave(self, phase):
        self.told.append(("leave", phase))

    def checkpoint(self):
        self.told.append(("checkpoint", None))
        return self.hung

    @property
    def num_open(self):
        return sum({"enter": 1, "leave": -1}.get(what, 0) for what, _ in self.told)


def context_of(link=None, *, folder="/nowhere/episode", columns=None, is_chat=False, **limits):
    prompt = Prompt(
        id="p",
        messages=(Message(role="user", content="q"),),
        reference="gold",
        columns=columns or {},
        is_chat=is_chat,
    )
    start = Start(episode_id="e", prompt=prompt, seed=1, limits=EpisodeLimits(**limits))
    return EpisodeContext(start, folder=folder, link=link or RecordingLink())


def call(name, arguments=None, *, number=1, **more):
    return ToolCall(
        id=f"call{number:05d}", name=name, arguments={} if arguments is None else arguments, **more
    )


def turn(*calls):
    return Message(role="assistant", content="", tool_calls=calls)
