import pytest

from rlhf.data.characters import write_character_tokenizer
from rlhf.episodes.chat import ChatRenderer
from rlhf.episodes.render import Renderer
from tests.chat_tokenizers import FAMILIES, family_of, save_tokenizer


@pytest.fixture(scope="session")
def characters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("characters")
    write_character_tokenizer(folder, vocabulary_size=128)
    return str(folder)


@pytest.fixture(scope="session")
def chat_of(tmp_path_factory):
    """name of a family or of a template -> its renderer."""
    known = {}

    def load(name):
        if name not in known:
            family = FAMILIES.get(name) or family_of(name)
            folder = save_tokenizer(tmp_path_factory.mktemp("tokenizer"), family)
            known[name] = ChatRenderer(Renderer(model_folder=str(folder)))
        return known[name]

    return load
