import json
import pickle
import shutil

import pytest

from rlhf.data.characters import write_character_tokenizer
from rlhf.episodes.render import Renderer
from rlhf.errors import ConfigError, DataError, ModelError
from rlhf.types import Message, Prompt

JINJA = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def ask(text, *more):
    return Prompt(id="rows.jsonl:3", messages=(Message(role="user", content=text), *more))


def test_plain_template_is_filled(characters):
    renderer = Renderer(model_folder=characters, template="Q: {prompt}\nA: ")
    assert renderer.decode(renderer.encode_prompt(ask("{x}+1"))) == "Q: {x}+1\nA: "


def test_chat_template_of_a_file_renders_system_prompt_and_generation_prompt(characters, tmp_path):
    (tmp_path / "chat.jinja").write_text(JINJA)
    renderer = Renderer(
        model_folder=characters, chat_template=str(tmp_path / "chat.jinja"), system_prompt="Be brief."
    )
    ids = renderer.encode_prompt(ask("2+2?"))
    assert all(isinstance(token, int) for token in ids)
    assert renderer.decode(ids) == "[system]Be brief.[user]2+2?[assistant]"


def test_missing_chat_template_names_both_ways_out(characters):
    with pytest.raises(ModelError, match=r"(?s)model\.chat_template.*task\.template"):
        Renderer(model_folder=characters)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"template": "Q:"}, r"task\.template is 'Q:'"),
        ({"template": "{prompt}", "system_prompt": "x"}, r"task\.system_prompt needs task\.template: chat"),
    ],
)
def test_unusable_template_is_refused(characters, arguments, says):
    with pytest.raises(ConfigError, match=says):
        Renderer(model_folder=characters, **arguments)


def test_missing_files_name_their_key(characters, tmp_path):
    with pytest.raises(ModelError, match=r"model\.chat_template: there is no file 'nope\.jinja'"):
        Renderer(model_folder=characters, chat_template="nope.jinja")
    with pytest.raises(ModelError, match=r"model\.tokenizer: no tokenizer could be loaded"):
        Renderer(model_folder=str(tmp_path))


def test_a_reference_with_other_ids_is_refused(characters, tmp_path):
    write_character_tokenizer(tmp_path / "tags", tags=("<think>", "</think>"), vocabulary_size=128)
    plain, tagged = (
        Renderer(model_folder=str(f), template="{prompt}") for f in (characters, tmp_path / "tags")
    )
    plain.check_reference(str(tmp_path / "tags"))
    plain.check_reference(str(tmp_path / "without_a_tokenizer"))
    with pytest.raises(
        ModelError, match=r"algorithm\.reference: .* gives 2 of our tokens another id or none"
    ):
        tagged.check_reference(characters)


def test_conversation_needs_the_chat_template(characters):
    renderer = Renderer(model_folder=characters, template="{prompt}")
    with pytest.raises(DataError, match=r"prompt rows\.jsonl:3: .*task\.template: chat"):
        renderer.encode_prompt(ask("a", Message(role="user", content="b")))


def test_character_without_a_token_is_named(characters):
    renderer = Renderer(model_folder=characters, template="{prompt}")
    with pytest.raises(DataError, match=r"prompt rows\.jsonl:3: .*no token for what follows 'caf'"):
        renderer.encode_prompt(ask("café"))


@pytest.mark.parametrize("other", ["bos_token", "eos_token", "pad_token"])
def test_unknown_token_with_another_purpose_may_stand_in_a_prompt(characters, tmp_path, other):
    folder = tmp_path / "shared"
    shutil.copytree(characters, folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {other: "<unk>"}))
    renderer = Renderer(model_folder=str(folder), template="<unk>{prompt}")
    assert renderer.encode_prompt(ask("a"))[0] == renderer.tokenizer.unk_token_id


def test_completion_ends_with_eos_and_decodes_without_it(characters):
    renderer = Renderer(model_folder=characters, template="{prompt}")
    ids = renderer.encode_completion("a b", where="row 1")
    assert ids[-1] == renderer.stop_token_ids[0] == 1
    assert renderer.decode(ids) == "a b"


def test_stop_tokens_join_tokenizer_and_generation_config(characters, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(characters, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 1]}))
    assert Renderer(model_folder=str(folder), template="{prompt}").stop_token_ids == (1, 7)


def test_long_prompts_are_counted_and_the_longest_named(characters):
    renderer = Renderer(model_folder=characters, template="{prompt}")
    rows = [Prompt(id=f"row {n}", messages=(Message(role="user", content="x" * n),)) for n in (3, 9, 12)]
    assert renderer.check_prompts(rows, max_prompt_tokens=12, key="task.train") == 12
    with pytest.raises(
        DataError, match=r"task\.train: 2 of 3 .*max_prompt_tokens \(8\).* row 12 with 12 tokens"
    ):
        renderer.check_prompts(rows, max_prompt_tokens=8, key="task.train")


def test_renderer_pickles_small_and_works_again(characters):
    renderer = Renderer(model_folder=characters, template="{prompt}=")
    renderer.encode_prompt(ask("1"))
    frozen = pickle.dumps(renderer)
    assert len(frozen) < 1000
    assert pickle.loads(frozen).encode_prompt(ask("1")) == renderer.encode_prompt(ask("1"))
