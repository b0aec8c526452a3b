import asyncio
import dataclasses
from typing import Any

import pytest

from rewards.endpoint import EndpointError
from rewards.reward_model import ServedScorer
from rlhf.errors import ConfigError
from rlhf.interfaces import Scorer
from rlhf.types import Message, Prompt
from tests.unit.rewards.attempts import prompt_of
from tests.unit.rewards.served_models import Served, served

MESSAGES = [{"role": "user", "content": "How much is 1 + 1?"}, {"role": "assistant", "content": "2"}]


def scorer(server: Served, **settings: Any) -> ServedScorer:
    endpoint = {"url": server.address, "model": "rm", "timeout_s": 5.0}
    return ServedScorer(endpoint=endpoint, **settings)


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("classify", {"data": [{"index": 0, "label": "LABEL_0", "probs": [-2.5], "num_classes": 1}]}),
        ("pooling", {"data": [{"index": 0, "data": [[0.5], [9.0], [-2.5]]}]}),
        ("pooling", {"data": [{"index": 0, "data": [-2.5]}]}),
        ("score", {"data": [{"index": 0, "object": "score", "score": -2.5}]}),
    ],
)
def test_the_score_is_the_models_number(api, body: dict) -> None:
    with served(lambda _: body) as server:
        served_scorer: Scorer = scorer(server, api=api)
        assert asyncio.run(served_scorer.score(MESSAGES)) == -2.5
    assert server.paths == [f"/{api}"]
    (request,) = server.requests
    assert (request.pop("model"), request.pop("use_activation")) == ("rm", False)
    if api == "score":
        assert request == {"text_1": "How much is 1 + 1?", "text_2": "2"}
    else:
        assert request == {"messages": MESSAGES}


@pytest.mark.parametrize(("label", "expected"), [(0, 0.25), (1, 0.75), (-1, 0.75)])
def test_one_of_several_classes_counts_when_it_is_named(label: int, expected: float) -> None:
    body = {"data": [{"probs": [0.25, 0.75]}]}
    with served(lambda _: body) as server:
        assert asyncio.run(scorer(server, label=label).score(MESSAGES)) == expected
        with pytest.raises(EndpointError, match="gives 2 numbers: set label"):
            asyncio.run(scorer(server).score(MESSAGES))


def test_a_completion_is_scored_as_the_answer_to_its_conversation() -> None:
    prompt = Prompt(id="p", messages=(Message(role="system", content="s"), Message(role="user", content="u")))
    with served(lambda body: {"data": [{"probs": [float(len(body["messages"][-1]["content"]))]}]}) as server:
        without = scorer(server)
        assert asyncio.run(without("<think>hm</think> abc", prompt)) == 3.0
        assert asyncio.run(without("<think>hm", prompt)) == 0.0
        assert asyncio.run(scorer(server, with_thought=True)("<think>hm</think> abc", prompt)) == 21.0
        assert asyncio.run(scorer(server, prompt_opens_think=True)("hm</think>abcd", prompt)) == 4.0
    assert [message["role"] for message in server.requests[0]["messages"]] == ["system", "user", "assistant"]


def test_images_go_with_the_first_message_of_the_user() -> None:
    with served(lambda _: {"data": [{"probs": [1.0]}]}) as server:
        asyncio.run(scorer(server).score(MESSAGES, ["data:image/png;base64,AA"]))
        with pytest.raises(ConfigError, match=r"an image is 'cat\.png', expected an address .* or a file"):
            asyncio.run(scorer(server).score(MESSAGES, ["cat.png"]))
    asked = server.requests[0]["messages"][0]["content"]
    assert asked[0] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    assert asked[1] == {"type": "text", "text": "How much is 1 + 1?"}
    assert MESSAGES[0]["content"] == "How much is 1 + 1?"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": []},
        {"data": [{}]},
        {"data": [{"probs": []}]},
        {"data": [{"probs": ["a"]}]},
        {"data": [{"probs": [1.0]}, {"probs": [2.0]}]},
        {"data": [{"probs": [float("nan")]}]},
        {"data": [{"probs": [float("inf")]}]},
    ],
)
def test_a_reply_without_one_finite_score_is_an_error(body: dict) -> None:
    with served(lambda _: body) as server, pytest.raises(EndpointError):
        asyncio.run(scorer(server)("2", prompt_of()))


def test_settings_that_cannot_be_are_refused() -> None:
    endpoint = {"url": "http://127.0.0.1:9", "model": "rm"}
    with pytest.raises(ConfigError, match="api is 'reward'"):
        ServedScorer(endpoint=endpoint, api="reward")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="takes no images"):
        asyncio.run(ServedScorer(endpoint=endpoint, api="score").score(MESSAGES, ["http://h/cat.png"]))


def test_images_go_where_the_prompt_has_them_and_files_as_what_is_in_them(tmp_path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"picture")
    prompt = Prompt(
        id="p",
        messages=(Message(role="system", content="<image>s"), Message(role="user", content="a<image>b")),
        images=(str(file), "data:image/png;base64,AA"),
    )
    with served(lambda _: {"data": [{"probs": [1.0]}]}) as server:
        asyncio.run(scorer(server)("an <image> of text", prompt))
        with pytest.raises(
            ConfigError, match="the messages have 2 image placeholders and there are 1 images"
        ):
            asyncio.run(scorer(server)("2", dataclasses.replace(prompt, images=(str(file),))))
    system, user, answer = (message["content"] for message in server.requests[0]["messages"])
    first = {"type": "image_url", "image_url": {"url": "data:image/png;base64,cGljdHVyZQ=="}}
    assert system == [first, {"type": "text", "text": "s"}]
    second = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    assert user == [{"type": "text", "text": "a"}, second, {"type": "text", "text": "b"}]
    assert answer == "an <image> of text"


def test_a_placeholder_without_images_is_text() -> None:
    with served(lambda _: {"data": [{"probs": [1.0]}]}) as server:
        asyncio.run(scorer(server).score([{"role": "user", "content": "<image>"}, MESSAGES[1]]))
    assert server.requests[0]["messages"][0]["content"] == "<image>"
