from dataclasses import replace

import pytest

from rlhf.config.environment import EnvironmentConfig
from rlhf.config.schema import Recipe
from rlhf.episodes.render import Renderer
from rlhf.errors import ConfigError, DataError, ModelError
from rlhf.materials import dialect_for, load_task, refuse_images_in_environments
from rlhf.types import Message, Prompt
from tests.chat_tokenizers import FAMILIES, Family, family_of, save_tokenizer
from tests.tool_calls import TOOLS, block, written


def renderer_of(folder, family: Family, chat_template: str | None = None) -> Renderer:
    return Renderer(model_folder=str(save_tokenizer(folder, family, chat_template)))


@pytest.mark.parametrize(
    ("family", "syntax"),
    [("qwen3", "hermes"), ("qwen2.5", "hermes"), ("llama3.2", "llama3"), ("deepseek_v3", "deepseek_v3")],
)
def test_calls_are_read_as_the_models_template_writes_them(tmp_path, family, syntax):
    dialect = dialect_for(EnvironmentConfig(use="a:b"), renderer_of(tmp_path, FAMILIES[family]))
    text = block(syntax, [written(syntax, "look", {"q": "x"})])
    (call,) = dialect.parse(text, tools=TOOLS).tool_calls
    assert (call.name, call.arguments) == ("look", {"q": "x"})


def test_what_the_recipe_says_of_turns_reaches_them(tmp_path):
    environment = EnvironmentConfig(
        use="a:b", history="template", compaction="discard_75", compaction_at=0.5, tool_syntax="pythonic"
    )
    renderer = renderer_of(tmp_path, FAMILIES["qwen3"])
    dialect = dialect_for(environment, renderer)
    assert (dialect.history, dialect.compaction, dialect.compaction_at) == ("template", "discard_75", 0.5)
    assert [call.name for call in dialect.parse("[look(q='x')]", tools=TOOLS).tool_calls] == ["look"]
    assert dialect.chat.stop_token_ids == renderer.stop_token_ids


def test_a_template_that_cannot_be_extended_is_refused(tmp_path):
    with pytest.raises(ModelError, match="without any of the stop tokens"):
        dialect_for(EnvironmentConfig(use="a:b"), renderer_of(tmp_path, family_of("gptoss")))


def test_an_unknown_syntax_is_refused_with_those_there_are(tmp_path):
    renderer = renderer_of(tmp_path, FAMILIES["qwen2.5"])
    with pytest.raises(ConfigError, match=r"tool_syntax is 'hermez', expected auto, one of .*pythonic"):
        dialect_for(EnvironmentConfig(use="a:b", tool_syntax="hermez"), renderer)


def test_a_template_whose_calls_nobody_reads_plays_without_tools(tmp_path):
    dialect = dialect_for(EnvironmentConfig(use="a:b"), renderer_of(tmp_path, family_of("gemma")))
    assert dialect.parse("hello").content == "hello"
    with pytest.raises(ConfigError, match="writes calls in a way not known here"):
        dialect.parse("hello", tools=TOOLS)


def test_prompts_of_all_scenarios_are_loaded_with_their_names(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "q{i}", "answer": "{i}"}}\n' for i in range(3)))
    one = {"train": {"file": str(rows)}, "heldout": {"file": str(rows)}, "rewards": [{"use": "a:b"}]}
    task = {"scenarios": {"b": one, "a": one}}
    values = {"name": "x", "model": {"path": "x"}, "task": task, "eval": {"num_prompts": 2}}
    train, heldout = load_task(Recipe.model_validate(values))
    assert [prompt.id for prompt in train] == [f"{name}/rows.jsonl:{i}" for name in "ba" for i in range(3)]
    assert [prompt.scenario for prompt in heldout] == ["b", "b", "a", "a"]


def test_images_in_an_environment_are_refused(tmp_path):
    prompt = Prompt(
        id="a", messages=(Message(role="user", content="<image>x"),), images=("a.png",), scenario=""
    )
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {"path": str(tmp_path)},
            "task": {"train": {"file": "rows.jsonl"}, "environment": {"use": "m:E"}},
        }
    )
    with pytest.raises(DataError, match="row a has 1 images, which environments do not show yet"):
        refuse_images_in_environments(recipe, [prompt])
    refuse_images_in_environments(recipe, [replace(prompt, images=())])
