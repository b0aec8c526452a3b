"""Conversations in tokens: a chat template extended by what is new alone, never applied again to what was sampled."""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

from rlhf.episodes.parsing import END_THINK, THINK
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError, ModelError
from rlhf.types import Message, ToolCall

Schema = Mapping[str, Any]
"""A tool as chat templates know it: {"type": "function", "function": {name, description, parameters}}."""

_SENTINEL = "sentinel0of0the0assistant"
_THOUGHT = "sentinel0of0the0thoughts"
_CALL = ToolCall(id="call00000", name="tool", arguments={"argument": _SENTINEL})
QUESTION = Message(role="user", content="question")
ANSWER = Message(role="assistant", content=_SENTINEL, reasoning=_THOUGHT)
ASKING = replace(ANSWER, content="", tool_calls=(_CALL,))
"""A turn with one call. Without content: some templates write it after the results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Ids that end where the model's turn begins, and whether they have it think at once."""

    token_ids: tuple[int, ...]
    is_thinking: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Habits:
    """What a template wants messages to be like."""

    arguments_are_text: bool = False
    """It adds a call's arguments to a string; others walk through an object."""
    reasoning_key: str | None = None
    """Where it looks for the thoughts; None: nowhere, so that they stand in the content."""
    one_call_a_turn: bool = False


class ChatRenderer:
    """Messages to ids: a whole conversation once (`start`), then only what comes after a sampled turn (`extend`).

    The delta is what the template writes after the end of an assistant's turn in a dialogue made up for the
    purpose. Text of special tokens inside a message is encoded as plain text: no message can end itself and begin
    another. Not every template can be extended: `template_check` tells.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self.tokenizer = renderer.tokenizer
        self._habits = _Habits()
        self._habits = self._find_habits()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a turn."""
        return self._renderer.stop_token_ids

    @cached_property
    def structural_ids(self) -> Mapping[int, str]:
        """Ids that must not come out of a message: special tokens, and added ones that the template writes.

        The others (runs of spaces, HTML tags of some families) are how the model knows ordinary text.
        """
        written = str(self._renderer.chat_template_text or self.tokenizer.chat_template)
        return {
            index: token.content
            for index, token in self.tokenizer.added_tokens_decoder.items()
            if token.content.strip() and (token.special or token.content in written)
        }

    def start(self, messages: Sequence[Message], tools: Sequence[Schema] = ()) -> Rendered:
        """A conversation, ready for the model's turn."""
        hidden: dict[str, str] = {}
        dialogue = self._safe(self._renderer.with_system_prompt(messages), hidden)
        text = self._apply(dialogue, self._hide(list(tools), hidden), is_open=True)
        return Rendered(token_ids=tuple(self._encode(text, hidden)), is_thinking=opens_thoughts(text))

    def extend(self, new: Sequence[Message], tools: Sequence[Schema] = (), *, after: int) -> Rendered:
        """What follows a sampled turn, up to the model's next one. `after`: the turn's last id.

        Unless that is the one with which the template ends such a turn, the end comes first: the turn was cut, or
        the model ended it in another way.
        """
        hidden: dict[str, str] = {}
        end, text = self._delta(self._safe(new, hidden), tools, before=(QUESTION, _asking(new)))
        end_id = self.stops[end]
        # Encoded with the end in front: some tokenizers put a space before the first word of a text.
        ids = self._encode(end + text, hidden)
        if ids[:1] != [end_id]:
            raise ModelError(f"the tokenizer joins {end!r} with what follows it: {text[:40]!r}")
        return Rendered(
            token_ids=tuple(ids[1:] if after == end_id else ids), is_thinking=opens_thoughts(text)
        )

    def turn(
        self, message: Message, tools: Sequence[Schema] = (), *, is_thinking: bool = False
    ) -> tuple[int, ...]:
        """An assistant's message as the model should sample it, the end of its turn included.

        `is_thinking`: what comes before has it think at once. DataError for a message that would end within itself.
        """
        said = _texts([message.content, message.reasoning, [call.arguments for call in message.tool_calls]])
        within = next((end for text in said for end in self.stops if end in text), None)
        if within is not None:
            raise DataError(
                f"a turn of the assistant contains {within!r}, with which the model ends its turns: what comes after "
                "that cannot be part of it. Spell it in another way, or leave it out."
            )
        asked = self.rendered([QUESTION], tools, is_open=True).removesuffix(self.opening)
        header, think, begun = self.opening.partition(THINK)
        body = self.rendered([QUESTION, message], tools).removeprefix(asked).removeprefix(header)
        if not opens_thoughts(self.opening):
            body = body.removeprefix(think + begun)
        elif is_thinking and body.startswith(THINK):
            body = body.removeprefix(THINK).removeprefix(begun)
        elif is_thinking:
            # The template forgets thoughts, but asks for them.
            body = f"{message.reasoning or ''}\n{END_THINK}\n\n{body}"
        ends = [(body.find(end), end) for end in self.stops if end in body]
        # Some end a turn with what begins the next.
        place, end = min(ends, default=(len(body), self._end_before(message)))
        return (*self._encode(body[:place], {}), self.stops[end])

    def text(self, ids: Sequence[int]) -> str:
        """Text of a sampled turn: its end left out, all other special tokens by name."""
        end = len(ids)
        while end and ids[end - 1] in self.stop_token_ids:
            end -= 1
        text: str = self.tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False)
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each id on its own, special tokens by name."""
        return self._renderer.pieces(ids)

    def shortened(self, text: str, max_tokens: int) -> str:
        """The text, if it has more tokens, without its middle, and a mark that says how many are missing."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) <= max_tokens:
            return text
        head, tail = ids[: max_tokens // 2], ids[len(ids) - max_tokens // 2 :]
        mark = f"\n[... {len(ids) - len(head) - len(tail)} tokens left out ...]\n"
        return str(self.text(head)) + mark + str(self.text(tail))

    def delta(
        self, new: Sequence[Message], tools: Sequence[Schema] = (), *, before: Sequence[Message] = ()
    ) -> tuple[str, str]:
        """(the token that ends the turn before, the text that follows it); `before`: another made-up dialogue."""
        return self._delta(list(map(self._plain, new)), tools, before=before or (QUESTION, _asking(new)))

    def rendered(
        self, messages: Sequence[Message], tools: Sequence[Schema] = (), *, is_open: bool = False
    ) -> str:
        """The template's text of messages. ModelError when it refuses them."""
        return self._apply(list(map(self._plain, messages)), list(tools), is_open=is_open)

    @cached_property
    def opening(self) -> str:
        """What the template writes for the model's turn to begin."""
        closed, text = self.rendered([QUESTION]), self.rendered([QUESTION], is_open=True)
        # Some write an end of text where the model is not asked.
        same = takewhile(lambda pair: pair[0] == pair[1], zip(closed, text, strict=False))
        opening = text[len(list(same)) :]
        if not opening:
            raise ModelError(
                "the chat template does nothing with add_generation_prompt, so that the model could not tell its turn "
                "from others. Give another template in model.chat_template."
            )
        return opening

    @cached_property
    def drops_thoughts(self) -> bool:
        """Whether the template leaves out what was thought before the last user's message."""
        return _THOUGHT not in self.rendered([QUESTION, ANSWER, QUESTION])

    def written_call(self, schema: Schema | None = None) -> str:
        """How the template writes a call (of this tool): shows its syntax. Empty where it writes none."""
        call = _CALL if schema is None else replace(_CALL, name=schema["function"]["name"])
        try:
            text = self.rendered([QUESTION, replace(ASKING, tool_calls=(call,))], [schema] if schema else [])
        except ModelError:
            return ""
        return text[text.rfind(QUESTION.content) :] if _SENTINEL in text else ""

    @cached_property
    def stops(self) -> Mapping[str, int]:
        """Texts that end a turn, and their ids."""
        return {self.tokenizer.decode([token]): token for token in self.stop_token_ids}

    @cached_property
    def _structural(self) -> re.Pattern[str]:
        longest_first = sorted(self.structural_ids.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _delta(
        self, new: Sequence[Any], tools: Sequence[Schema], *, before: Sequence[Message]
    ) -> tuple[str, str]:
        text = self._apply([*map(self._plain, before), *new], list(tools), is_open=True)
        place = text.rfind(_SENTINEL)
        if place < 0:
            raise ModelError(
                "the chat template does not write what the assistant said or called, so that what comes after it "
                "cannot be told. Give another template in model.chat_template."
            )
        after = text[place + len(_SENTINEL) :]
        found = {after.find(stop): stop for stop in self.stops if stop in after}
        if not found:
            raise ModelError(
                f"the chat template goes on after an assistant's turn with {after[:60]!r}, without any of the stop "
                f"tokens {list(self.stops)}: a model could not end its turn so. Name the right one as the "
                "tokenizer's eos token or in eos_token_id of generation_config.json, or give another template in "
                "model.chat_template."
            )
        first = min(found)
        return found[first], after[first + len(found[first]) :]

    def _end_before(self, message: Message) -> str:
        call = message.tool_calls[0] if message.tool_calls else None
        answer = call and Message(role="tool", content="", tool_call_id=call.id, name=call.name)
        return self.delta([answer or QUESTION])[0]

    def _find_habits(self) -> _Habits:
        def shows(word: str, dialogue: Sequence[Message]) -> bool:
            try:
                return word in self.rendered(dialogue)
            except ModelError:
                return False

        if not shows(_SENTINEL, [QUESTION, ASKING]):
            self._habits = _Habits(arguments_are_text=True)
        for key in ("reasoning_content", "thinking", "reasoning"):
            self._habits = replace(self._habits, reasoning_key=key)
            if shows(_THOUGHT, [QUESTION, ANSWER]) or shows(_THOUGHT, [QUESTION, ASKING]):
                break
        else:
            self._habits = replace(self._habits, reasoning_key=None)
        twice = replace(ASKING, tool_calls=(_CALL, replace(_CALL, id="call00001")))
        one = shows(_SENTINEL, [QUESTION, ASKING]) and not shows(_SENTINEL, [QUESTION, twice])
        return replace(self._habits, one_call_a_turn=one)

    def _apply(self, messages: Sequence[Any], tools: Sequence[Schema], *, is_open: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=self._renderer.chat_template_text,
                add_generation_prompt=is_open,
                tokenize=False,
            )
        except Exception as error:
            # Templates are programs; what they raise, jinja2 passes on.
            roles = [message["role"] for message in messages]
            raise ModelError(f"the chat template refuses messages with roles {roles}: {error}") from error
        return text

    def _plain(self, message: Message) -> dict[str, Any]:
        plain: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None and self._habits.reasoning_key is not None:
            plain[self._habits.reasoning_key] = message.reasoning
        elif message.reasoning is not None:
            plain["content"] = f"{THINK}\n{message.reasoning}\n{END_THINK}\n\n{message.content}"
        if message.tool_calls:
            plain["tool_calls"] = [self._plain_call(call) for call in message.tool_calls]
        if message.role == "tool":
            plain |= {"tool_call_id": message.tool_call_id, "name": message.name}
        return plain

    def _plain_call(self, call: ToolCall) -> dict[str, Any]:
        arguments: Any = dict(call.arguments or {})
        if self._habits.arguments_are_text:
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}

    def _safe(self, messages: Sequence[Message], hidden: dict[str, str]) -> list[Any]:
        """The messages as the template wants them, with words in place of what reads like a token."""
        told = _one_by_one(messages) if self._habits.one_call_a_turn else messages
        return [self._hide(self._plain(message), hidden) for message in told]

    def _hide(self, value: Any, hidden: dict[str, str]) -> Any:
        if isinstance(value, str):
            return self._structural.sub(lambda m: _word(m[0], hidden), value)
        if isinstance(value, Mapping):
            return {self._hide(key, hidden): self._hide(inner, hidden) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._hide(inner, hidden) for inner in value]
        return value

    def _encode(self, text: str, hidden: Mapping[str, str]) -> list[int]:
        """Ids of a text, what is hidden in it as plain text."""
        meanings = {word: meaning for meaning, word in hidden.items()}
        parts = re.split(f"({'|'.join(meanings)})", text) if meanings else [text]
        ids = {part: self._encode_part(part, meanings) for part in dict.fromkeys(filter(None, parts))}
        return [token for part in parts if part for token in ids[part]]

    def _encode_part(self, part: str, meanings: Mapping[str, str]) -> list[int]:
        if part in meanings:
            return self._renderer.encode_plain(meanings[part])
        # Half a surrogate pair, as JSON can spell it, has no UTF-8.
        whole = part.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return list(self.tokenizer.encode(whole, add_special_tokens=False))


def _asking(new: Sequence[Message]) -> Message:
    """The made-up turn that `new` answers: with a call, where a tool speaks."""
    # One is enough for every template, and some refuse more.
    first = next((message for message in new if message.role == "tool"), None)
    if first is None:
        return ANSWER
    call = replace(_CALL, id=first.tool_call_id or _CALL.id, name=first.name or _CALL.name)
    return replace(ASKING, tool_calls=(call,))


def _one_by_one(messages: Sequence[Message]) -> Iterator[Message]:
    """Turns of several calls as one turn for each, with its result after it."""
    results = {m.tool_call_id: m for m in messages if m.role == "tool"}
    told: set[str | None] = set()
    for message in messages:
        if len(message.tool_calls) > 1:
            for place, call in enumerate(message.tool_calls):
                # What was thought and said comes once.
                first = message if place == 0 else replace(message, content="", reasoning=None)
                yield replace(first, tool_calls=(call,))
                if call.id in results:
                    yield results[call.id]
                    told.add(call.id)
        elif message.role != "tool" or message.tool_call_id not in told:
            yield message


def _texts(value: Any) -> Iterator[str]:
    """The strings in a value of JSON, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def _word(text: str, hidden: dict[str, str]) -> str:
    """A word for a text, which no template changes and nobody can guess."""
    return hidden.setdefault(text, f"hidden{secrets.token_hex(8)}")


def opens_thoughts(text: str) -> bool:
    """Whether a prompt that ends so has the model think at once."""
    return text.rstrip().endswith(THINK)
