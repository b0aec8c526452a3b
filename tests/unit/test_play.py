"""What a person is shown of tools whose schemas are as bare as OpenAI's API allows."""

import asyncio
import io
import os

import pytest
from rich.console import Console

from rlhf.config.environment import EpisodeLimits
from rlhf.episodes.conversation import EpisodeEnded
from rlhf.episodes.render import Renderer
from rlhf.interfaces import GenerateRequest
from rlhf.play import Person
from rlhf.types import Message, Sampling
from tests.endpoints import make_dialect


@pytest.fixture
def nothing_typed():
    kept, empty = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    yield
    os.dup2(kept, 0)
    os.close(kept)
    os.close(empty)


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        ({}, "f()"),
        ({"parameters": None}, "f()"),
        ({"parameters": {"required": ["x"]}}, "f()"),
        ({"parameters": {"properties": {"x": True}, "required": None}}, "f(x?: any)"),
        ({"parameters": {"properties": {"x": {"type": ["integer", "null"]}}}}, "f(x?: integer | null)"),
    ],
)
def test_a_tool_is_shown_however_bare_its_schema(parameters, shown, tmp_path, nothing_typed):
    folder = tmp_path / "model"
    dialect = make_dialect(folder, "qwen2.5")
    written = io.StringIO()
    person = Person(Renderer(model_folder=str(folder)), Console(file=written))
    chat = person.join(dialect, EpisodeLimits()).chat
    tool = {"type": "function", "function": {"name": "f", **parameters}}
    ids = chat.start([Message(role="user", content="q")], [tool]).token_ids
    request = GenerateRequest(prompt_token_ids=ids, sampling=Sampling(max_tokens=8), seeds=(0,))
    with pytest.raises(EpisodeEnded):
        asyncio.run(person.generate(request))
    assert f"tool {shown}\n" in written.getvalue()
    assert 'a call is written so: <tool_call>\n{"name": "f", "arguments": {' in written.getvalue()
