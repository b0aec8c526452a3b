"""A conversation that a test plays, turn by turn, and the rows that come of it."""

import asyncio

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.conversation import Conversation, Dialect, Policy
from rlhf.episodes.ledger import TokenLedger
from rlhf.episodes.parsing import parser_of
from rlhf.types import Message, Sampling
from tests.policies import WrittenPolicy
from tests.tool_calls import TOOLS

CALL = '<tool_call>\n{"name": "look", "arguments": {"q": "x"}}\n</tool_call>'
QUESTION = Message(role="user", content="What is x?")
CUT = WrittenPolicy.CUT


def user(text):
    return Message(role="user", content=text)


def result(call, text="42"):
    return Message(role="tool", content=text, tool_call_id=call.id, name=call.name)


class Played:
    """A conversation with a policy that says these texts."""

    def __init__(
        self, chat, texts, *, syntax="auto", history="append", compaction="none", tools=TOOLS, **limits
    ):
        self.chat = chat
        self.engine = WrittenPolicy(chat, texts)
        self.ledger = TokenLedger()
        dialect = Dialect(
            chat=chat,
            parse=parser_of(syntax, written=chat.written_call()),
            history=history,
            compaction=compaction,
        )
        self.policy = Policy(
            engine=self.engine,
            sampling=Sampling(max_tokens=10_000, stop_token_ids=chat.stop_token_ids),
            seed=7,
            limits=EpisodeLimits(**limits),
        )
        self.thread = Conversation(dialect, self.policy, self.ledger, tools=tools)

    def sample(self, *new, thread=None):
        return asyncio.run((thread or self.thread).sample(*new))

    def rows(self):
        """The text of each segment, with what was sampled in braces."""
        segments, *_ = self.ledger.finish()
        return [self.row(segment) for segment in segments]

    def row(self, segment):
        text, was = "", False
        for token, sampled in zip((*segment.token_ids, None), (*segment.loss_mask, False), strict=True):
            text += ("{" if sampled else "}") * (sampled != was)
            text += "" if token is None else self.chat.tokenizer.decode([token])
            was = sampled
        return text

    def reasons(self):
        return [segment.reason for segment in self.ledger.finish()[0]]
