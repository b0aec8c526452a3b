import pytest

from rlhf.data.characters import write_character_tokenizer


@pytest.fixture(scope="session")
def characters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("characters")
    write_character_tokenizer(folder, vocabulary_size=128)
    return str(folder)
