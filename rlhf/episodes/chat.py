"""Conversations in tokens: a chat template extended by what is new alone, never applied again to what was sampled."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rlhf.episodes.parsing import END_THINK, THINK
from rlhf.episodes.render import Renderer
from rlhf.errors import ModelError
from rlhf.types import Message, ToolCall

Schema = Mapping[str, Any]
"""A tool as chat templates know it: {"type": "function", "function": {name, description, parameters}}."""

_SENTINEL = "sentinel0of0the0assistant"
_QUESTION = Message(role="user", content="question")
_ANSWER = Message(role="assistant", content=_SENTINEL, reasoning="thought")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """Ids of messages after a sampled turn, and whether they have the model think at once."""

    token_ids: tuple[int, ...]
    is_thinking: bool


class ChatRenderer:
    """Messages to ids: a whole conversation once (`start`), then only what comes after a sampled turn (`extend`).

    The delta is what the template writes after the end of an assistant's turn in a dialogue made up for the
    purpose. Text of special or added tokens inside a message is encoded as plain text: no message can end itself
    and begin another. ModelError for a template that cannot be extended (see `template_check`).
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._tokenizer = renderer.tokenizer
        self._added = _any_of(self._tokenizer.get_added_vocab())
        self._arguments_are_text = False
        self._arguments_are_text = self._wants_arguments_as_text()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a turn."""
        return self._renderer.stop_token_ids

    def start(self, messages: Sequence[Message], tools: Sequence[Schema] = ()) -> tuple[int, ...]:
        """Ids of a conversation, ready for the model's turn."""
        safe, hidden = self._hide(self._renderer.with_system_prompt(messages))
        return tuple(self._encode(self._render(safe, tools, is_open=True), hidden))

    def extend(
        self, new: Sequence[Message], tools: Sequence[Schema] = (), *, is_closed: bool = True
    ) -> "Extension":
        """What follows a sampled turn, up to the model's next one.

        `is_closed`: the turn ended with a stop token; otherwise the end marker comes first.
        """
        safe, hidden = self._hide(new)
        delta = self.delta(safe, tools)
        ids = self._encode(self.end_of_turn + delta, hidden)
        # Encoded with the marker in front: some tokenizers put a space before the first word of a text.
        if ids[: len(self._end_ids)] != self._end_ids:
            raise ModelError(f"the tokenizer joins {self.end_of_turn!r} with what follows it: {delta[:40]!r}")
        rest = ids[len(self._end_ids) :] if is_closed else ids
        return Extension(token_ids=tuple(rest), is_thinking=opens_thoughts(delta))

    def text(self, ids: Sequence[int]) -> str:
        """Text of a sampled turn, its end and all other special tokens by name."""
        stops = set(self.stop_token_ids)
        while ids and ids[-1] in stops:
            ids = ids[:-1]
        text: str = self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each id on its own, special tokens by name."""
        return self._renderer.pieces(ids)

    def delta(
        self, new: Sequence[Message], tools: Sequence[Schema] = (), *, before: Sequence[Message] = ()
    ) -> str:
        """The text that follows the end of a turn; `before` is the made-up dialogue, if not the usual one."""
        dialogue = before or (_QUESTION, _asking(new))
        text = self._render([*dialogue, *new], tools, is_open=True)
        after = text[text.rindex(_SENTINEL) :]
        place = after.find(self.end_of_turn)
        if place < 0:
            raise ModelError(
                f"the chat template does not end every assistant's turn with {self.end_of_turn!r}, so that a "
                "conversation cannot be extended. Give another template in model.chat_template."
            )
        return after[place + len(self.end_of_turn) :]

    @cached_property
    def end_of_turn(self) -> str:
        """The token with which the template ends an assistant's turn."""
        stops: list[str] = [self._tokenizer.decode([token]) for token in self.stop_token_ids]
        text = self._render([_QUESTION, _ANSWER], (), is_open=False)
        if text.count(_SENTINEL) != 1:
            raise ModelError(
                f"the chat template shows an assistant's answer {text.count(_SENTINEL)} times, expected once. "
                "Give another template in model.chat_template."
            )
        after = text[text.index(_SENTINEL) :]
        found = {after.find(stop): stop for stop in stops if stop in after}
        if not found:
            raise ModelError(
                f"the chat template ends an assistant's turn with {after[len(_SENTINEL) :][:40]!r}, without any of "
                f"the stop tokens {stops}: a model could not end its turn. Name the right one as the tokenizer's eos "
                "token or in eos_token_id of generation_config.json."
            )
        return found[min(found)]

    @cached_property
    def opening(self) -> str:
        """What the template writes between a user's message and the model's turn."""
        closed = self._render([_QUESTION], (), is_open=False)
        text = self._render([_QUESTION], (), is_open=True)
        if not text.startswith(closed) or text == closed:
            raise ModelError(
                "the chat template does nothing with add_generation_prompt, so that the model could not tell its turn "
                "from others. Give another template in model.chat_template."
            )
        return text[len(closed) :]

    @cached_property
    def drops_thoughts(self) -> bool:
        """Whether the template leaves out what was thought before the last user's message."""
        dialogue = [_QUESTION, _ANSWER, _QUESTION]
        return (_ANSWER.reasoning or "") not in self._render(dialogue, (), is_open=False)

    def written_call(self, schema: Schema) -> str:
        """How the template writes a call of one argument, up to the end of the turn: shows its syntax."""
        name = schema["function"]["name"]
        call = ToolCall(id="call00000", name=name, arguments={"argument": "value"})
        asked = replace(_ANSWER, tool_calls=(call,))
        text = self._render([_QUESTION, asked], [schema], is_open=False)
        return text[text.rfind(_QUESTION.content) + len(_QUESTION.content) :]

    @cached_property
    def _end_ids(self) -> list[int]:
        ids: list[int] = self._tokenizer.encode(self.end_of_turn, add_special_tokens=False)
        return ids

    def _wants_arguments_as_text(self) -> bool:
        """Some templates add a call's arguments to a string, others walk through an object."""
        probe = ToolCall(id="call00000", name="f", arguments={"argument": "value"})
        dialogue = [_QUESTION, replace(_ANSWER, tool_calls=(probe,))]
        try:
            return "argument" not in self._render(dialogue, (), is_open=False)
        except ModelError:
            return True

    def _render(self, messages: Sequence[Message], tools: Sequence[Schema], *, is_open: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                [self._plain(message) for message in messages],
                tools=list(tools) or None,
                chat_template=self._renderer.chat_template_text,
                add_generation_prompt=is_open,
                tokenize=False,
            )
        except Exception as error:
            # Templates are programs; what they raise, jinja2 passes on.
            roles = [message.role for message in messages]
            raise ModelError(f"the chat template refuses messages with roles {roles}: {error}") from error
        return text

    def _plain(self, message: Message) -> dict[str, Any]:
        plain: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            plain["reasoning_content"] = message.reasoning
        if message.tool_calls:
            plain["tool_calls"] = [self._plain_call(call) for call in message.tool_calls]
        if message.role == "tool":
            plain |= {"tool_call_id": message.tool_call_id, "name": message.name}
        return plain

    def _plain_call(self, call: ToolCall) -> dict[str, Any]:
        arguments: Any = dict(call.arguments or {})
        if self._arguments_are_text:
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}

    def _hide(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """The messages with words in place of what reads like a token; the words' meanings."""
        texts = [text for message in messages for text in (message.content, message.reasoning or "")]
        if not any(self._added.search(text) for text in texts):
            return list(messages), {}
        nonce = hashlib.blake2b("\0".join(texts).encode("utf-8", "replace"), digest_size=8).hexdigest()
        words: dict[str, str] = {}

        def hide(text: str) -> str:
            return self._added.sub(lambda m: words.setdefault(m[0], f"hidden{nonce}x{len(words)}x"), text)

        found = [
            replace(m, content=hide(m.content), reasoning=None if m.reasoning is None else hide(m.reasoning))
            for m in messages
        ]
        return found, {word: text for text, word in words.items()}

    def _encode(self, text: str, hidden: Mapping[str, str]) -> list[int]:
        if not hidden:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
            return ids
        parts = re.split(f"({'|'.join(hidden)})", text)
        return [token for part in parts if part for token in self._encode_part(part, hidden)]

    def _encode_part(self, part: str, hidden: Mapping[str, str]) -> list[int]:
        if part not in hidden:
            return list(self._tokenizer.encode(part, add_special_tokens=False))
        return self._renderer.encode_plain(hidden[part])


def _asking(new: Sequence[Message]) -> Message:
    """The made-up turn that `new` answers: with calls, where tools speak."""
    calls = [
        ToolCall(id=m.tool_call_id or "call00000", name=m.name or "tool", arguments={"argument": _SENTINEL})
        for m in new
        if m.role == "tool"
    ]
    # One is enough for every template, and some refuse more.
    return replace(_ANSWER, tool_calls=tuple(calls[:1]))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def opens_thoughts(text: str) -> bool:
    """Whether a prompt that ends so has the model think at once."""
    return text.rfind(THINK) > text.rfind(END_THINK)
