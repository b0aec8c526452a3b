"""A tokenizer of single characters, for tiny models that learn on a laptop."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf.errors import ModelError

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
"""Printable ASCII and the newline, in id order after the three special tokens."""
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""What the text of a model that sees images has beside characters."""
CODES = ("<boi>", *(f"<c{number}>" for number in range(16)))
"""What begins an image, and the codes of a codebook of 16."""
KINDS: Mapping[str, tuple[str, ...]] = {"characters": (), "characters+tags": TAGS, "characters+codes": CODES}
"""What `model.tokenizer` may say instead of a folder -> tags that are one token each (half the tokens)."""


def write_character_tokenizer(
    folder: str | Path, *, tags: Sequence[str] = (), specials: Sequence[str] = (), vocabulary_size: int
) -> None:
    """Write a Hugging Face tokenizer folder: <pad> 0, <eos> 1, <unk> 2, the characters, the tags, the specials.

    decode(encode(text)) == text for every text over CHARACTERS; any other character becomes <unk>,
    which the renderer refuses. Raises ModelError when the model's vocabulary is too small.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [PAD, EOS, UNKNOWN, *CHARACTERS, *tags, *specials]
    if vocabulary_size < len(names):
        raise ModelError(
            f"model.config.vocab_size is {vocabulary_size}, but this model.tokenizer "
            f"needs {len(names)} or more."
        )
    core = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (PAD, EOS, UNKNOWN, *specials)]
    )
    core.add_tokens([AddedToken(name, special=False, normalized=False) for name in tags])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=list(specials),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(str(folder))
