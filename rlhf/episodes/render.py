"""Between text and token ids: the only code that touches a tokenizer."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf.data.vision_model import VisionModel, find_vision
from rlhf.episodes.image_prompts import ImagePrompts, refuse_images
from rlhf.errors import ConfigError, DataError, ModelError
from rlhf.types import Message, Prompt

CHAT = "chat"
SLOT = "{prompt}"


@dataclass(frozen=True, kw_only=True)
class Renderer:
    """Renders prompts to the ids the engine sees, and sampled ids to text.

    Pickles as its fields; the tokenizer is loaded again where it is first used.
    """

    model_folder: str
    """Hugging Face folder; its generation_config.json adds stop tokens."""
    tokenizer_path: str | None = None
    """Folder or hub name of the tokenizer; default: the model folder."""
    template: str = CHAT
    """`chat`, or a plain template that contains {prompt}."""
    system_prompt: str | None = None
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.template == CHAT:
            self._chat_template()
            return
        if self.template.count(SLOT) != 1:
            raise ConfigError(
                f"task.template is {self.template!r}, expected 'chat' or a plain template with {SLOT} once."
            )
        if self.system_prompt is not None:
            raise ConfigError(
                "task.system_prompt needs task.template: chat; in a plain template, write its text "
                "in front of {prompt}."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: self.__dict__[field.name] for field in fields(self)}

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer. Raises ModelError when it cannot be loaded."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                self._tokenizer_source, trust_remote_code=self.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"model.tokenizer: no tokenizer could be loaded from {self._tokenizer_source!r}: {error}. "
                "Give a folder with tokenizer.json, a hub name, or `characters`."
            ) from error

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a completion: the tokenizer's eos and those of generation_config.json, eos first."""
        found: list[Any] = [self.tokenizer.eos_token_id]
        generation = Path(self.model_folder) / "generation_config.json"
        if generation.is_file():
            more = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")
            found += more if isinstance(more, list) else [more]
        ids = tuple(dict.fromkeys(int(token) for token in found if token is not None))
        if not ids:
            raise ModelError(
                f"model.tokenizer: {self._tokenizer_source!r} has no eos token and the model folder has no "
                "generation_config.json with eos_token_id: completions could never end. Add one of the two."
            )
        return ids

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt, ready for the model's turn; of its images, too.

        Raises DataError for text without tokens, and for images that the model does not see.
        """
        if self._images is None:
            refuse_images(prompt, self.model_folder)
            return self._known(self._encode(prompt), where=f"prompt {prompt.id}")
        spelt = prompt
        if prompt.images:
            spelt = replace(prompt, messages=self._images.spelt(prompt.messages))
        known = self._known(self._encode(spelt), where=f"prompt {prompt.id}")
        return tuple(self._images.expanded(known, prompt))

    def encode_plain(self, text: str) -> list[int]:
        """Ids that spell `text` without any special or added token, even if it reads like one."""
        halves = [text[:1], text[1:]]
        for parts in (halves, list(text)):
            ids = [token for part in parts for token in self.tokenizer.encode(part, add_special_tokens=False)]
            if self._added_ids.isdisjoint(ids):
                return ids
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return found

    def encode_completion(self, text: str, *, where: str) -> tuple[int, ...]:
        """Token ids of a given completion, ended by the eos token, as the engine would have sampled it."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return (*self._known(ids, where=where), self.stop_token_ids[0])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, special tokens left out."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each id on its own, special tokens by name: for people to read."""
        return [str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False)) for token in ids]

    @cached_property
    def vision(self) -> VisionModel | None:
        """What the model says of the images that it sees; None where it sees none."""
        return find_vision(self.model_folder)

    @property
    def vocabulary_size(self) -> int:
        """Ids that the tokenizer can spell, 0 to this."""
        return len(self.tokenizer)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of special tokens, those around and of images among them."""
        of_images = (
            () if self.vision is None else (*self.vision.banned, self.vision.start_id, self.vision.end_id)
        )
        return tuple(dict.fromkeys((*self.tokenizer.all_special_ids, *of_images)))

    def check_prompts(self, prompts: Iterable[Prompt], *, max_prompt_tokens: int, key: str) -> int:
        """Render every prompt and return the longest length in tokens.

        Raises DataError when some are longer than `max_prompt_tokens`: says how many and names the longest.
        """
        rendered = {prompt.id: self.encode_prompt(prompt) for prompt in prompts}
        lengths = {name: len(ids) for name, ids in rendered.items()}
        longest = max(lengths, key=lengths.__getitem__)
        num_seen = 0 if self.vision is None else rendered[longest].count(self.vision.image_id)
        num_long = sum(length > max_prompt_tokens for length in lengths.values())
        if num_long:
            raise DataError(
                f"{key}: {num_long} of {len(lengths)} prompts are longer than sampling.max_prompt_tokens "
                f"({max_prompt_tokens}); the longest is row {longest} with {lengths[longest]} tokens"
                + (f", {num_seen} of them of its images, which are never cut" if num_seen else "")
                + ". Raise the limit, or leave the rows out with a mapper."
            )
        return lengths[longest]

    def check_reference(self, folder: str, *, key: str = "algorithm.reference") -> None:
        """Refuse a reference or teacher whose tokenizer spells our ids otherwise: it would score other text.

        It may have further ids; a folder without a tokenizer cannot be compared and is taken.
        """
        from transformers import AutoTokenizer

        try:
            other = AutoTokenizer.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError):
            return
        theirs = other.get_vocab()
        moved = sorted(
            token for token, index in self.tokenizer.get_vocab().items() if theirs.get(token) != index
        )
        if moved:
            raise ModelError(
                f"{key}: the tokenizer of {folder!r} gives {len(moved)} of our tokens another id or "
                f"none, {moved[0]!r} among them. Use a reference or teacher of the same tokenizer."
            )

    @property
    def _tokenizer_source(self) -> str:
        return self.tokenizer_path or self.model_folder

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_added_vocab().values())

    def with_system_prompt(self, messages: Sequence[Message]) -> list[Message]:
        """The messages, after the recipe's system prompt where they have none of their own."""
        if self.system_prompt is None or (messages and messages[0].role == "system"):
            return list(messages)
        return [Message(role="system", content=self.system_prompt), *messages]

    @cached_property
    def chat_template_text(self) -> str | None:
        """The Jinja text of model.chat_template; None: the tokenizer's own. ModelError when there is none at all."""
        return self._chat_template()

    @cached_property
    def _images(self) -> ImagePrompts | None:
        return None if self.vision is None else ImagePrompts(self.vision, self.tokenizer)

    def _encode(self, prompt: Prompt) -> list[int]:
        if self.template == CHAT:
            return self._encode_chat(prompt)
        ids: list[int] = self.tokenizer.encode(self.template.replace(SLOT, self._only_text(prompt)))
        return ids

    def _encode_chat(self, prompt: Prompt) -> list[int]:
        messages = self.with_system_prompt(prompt.messages)
        ids: list[int] = self.tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            chat_template=self.chat_template_text,
            add_generation_prompt=True,
            return_dict=False,
        )
        return ids

    def _chat_template(self) -> str | None:
        if self.chat_template is not None:
            file = Path(self.chat_template)
            if not file.is_file():
                raise ModelError(
                    f"model.chat_template: there is no file {self.chat_template!r} (looked in {Path.cwd()})."
                )
            return file.read_text(encoding="utf-8")
        of_processor = Path(self.model_folder) / "chat_template.json"
        if self.tokenizer.chat_template is None and of_processor.is_file():
            return str(json.loads(of_processor.read_text(encoding="utf-8"))["chat_template"])
        if self.tokenizer.chat_template is None:
            raise ModelError(
                f"task.template is 'chat', but the tokenizer of {self._tokenizer_source!r} has no chat "
                "template. Give one as a Jinja file in model.chat_template, or set task.template to a plain "
                "template with {prompt}, for example '{prompt}\\n'."
            )
        return None

    def _only_text(self, prompt: Prompt) -> str:
        if len(prompt.messages) != 1 or prompt.messages[0].role != "user":
            roles = [message.role for message in prompt.messages]
            raise DataError(
                f"prompt {prompt.id}: messages with roles {roles} need task.template: chat; "
                "a plain template takes one user message."
            )
        return prompt.messages[0].content

    def _known(self, ids: Sequence[int], *, where: str) -> tuple[int, ...]:
        unknown = self.tokenizer.unk_token_id
        # Some families (GPT-2, OPT, OLMo 2) use one token for several purposes: it may stand there rightly.
        others = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        if unknown not in {None, *others} and unknown in ids:
            place = list(ids).index(unknown)
            before = self.tokenizer.decode(list(ids[:place]))
            raise DataError(f"{where}: the tokenizer has no token for what follows {before[-40:]!r}.")
        return tuple(ids)
