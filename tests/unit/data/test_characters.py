import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rlhf.data.characters import CHARACTERS, TAGS, write_character_tokenizer
from rlhf.errors import ModelError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("characters")
    write_character_tokenizer(folder, vocabulary_size=128)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagged")
    write_character_tokenizer(folder, tags=TAGS, vocabulary_size=128)
    return AutoTokenizer.from_pretrained(folder)


@given(text=st.text(alphabet=CHARACTERS))
def test_characters_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_special_tokens_come_first_and_spaces_survive(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.decode(tokenizer.encode("  a , b .  c\n\n")) == "  a , b .  c\n\n"
    assert tokenizer.encode("é") == [2]


@given(parts=st.lists(st.sampled_from([*CHARACTERS, *TAGS])))
def test_tags_are_one_token_and_round_trip(tagged, parts):
    text = "".join(parts)
    assert tagged.decode(tagged.encode(text), skip_special_tokens=True) == text
    assert len(tagged.encode("".join(TAGS))) == len(TAGS)


def test_too_small_vocabulary_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"model\.config\.vocab_size is 64.*needs 99 or more"):
        write_character_tokenizer(tmp_path, vocabulary_size=64)
