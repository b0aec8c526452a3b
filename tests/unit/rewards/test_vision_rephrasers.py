import pickle

import pytest

from rewards.endpoint import EndpointError
from rewards.vision_rephrasers import COMPLEMENTARY, FULL, ChatRephraser, Template
from rewards.vision_shapes import ATTRIBUTES, LOW_LEVEL, WORDS
from rlhf.errors import ConfigError
from tests.unit.rewards.served_models import Raw, chat, served

ENDPOINT = {"url": "http://127.0.0.1:9/v1", "model": "writer"}
AT_ONCE = {"pause_s": 0.0}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "a red circle"),
        (COMPLEMENTARY, "a red circle centered harmonious"),
        ("a beautiful photo of {query}, 8k", "a beautiful photo of a red circle, 8k"),
    ],
)
def test_a_template_adds_its_words(words, expected):
    assert Template(words).rephrase(["a red circle"]) == [expected]


def test_a_query_that_looks_like_a_template_stays_as_it_is():
    assert Template("{query} {x}").rephrase(["{query} {0}"]) == ["{query} {0} {x}"]


def test_the_words_for_shapes_are_those_of_its_captions():
    high = [words[0] for words in WORDS]
    assert FULL.split() == high
    assert COMPLEMENTARY.split() == high[LOW_LEVEL:]
    assert len(high) == len(ATTRIBUTES)


@pytest.mark.parametrize("kind", ["detail", "k_list", "kw_dict", "reorg"])
def test_each_kind_asks_once_for_each_distinct_query(kind):
    with served(
        lambda body: chat(f"<think>hm</think>\n  {body['messages'][1]['content']}, soft\n light ")
    ) as server:
        rephraser = ChatRephraser(endpoint=server.endpoint(), kind=kind)
        found = rephraser.rephrase(["a cat", "a dog", "a cat"])
    assert found == ["a cat, soft light", "a dog, soft light", "a cat, soft light"]
    assert sorted(r["messages"][1]["content"] for r in server.requests) == ["a cat", "a dog"]
    assert "60 words" in server.requests[0]["messages"][0]["content"]


def test_kinds_and_k_are_asked_in_different_words():
    kinds = [
        ChatRephraser(endpoint=ENDPOINT, kind=kind)
        for kind in ("detail", "k_list", "kw_dict", "repeat", "reorg")
    ]
    versions = {r.version for r in kinds} | {ChatRephraser(endpoint=ENDPOINT, k=3).version}
    assert len(versions) == 6


def test_repeat_asks_no_model():
    assert ChatRephraser(endpoint=ENDPOINT, kind="repeat").rephrase(["a cat"]) == ["a cat a cat"]


def test_no_queries_are_no_calls():
    assert ChatRephraser(endpoint=ENDPOINT).rephrase([]) == []


@pytest.mark.parametrize(
    "reply",
    [
        chat(""),
        chat(" \n"),
        chat("a " * 61),
        chat("a cat, in", finish_reason="length"),
        chat("<think>x</think>"),
    ],
)
def test_a_reply_that_is_no_query_is_an_error_that_shows_it(reply):
    with (
        served(lambda _: reply) as server,
        pytest.raises(EndpointError, match=r"'a cat': expected 1 to 60 words"),
    ):
        ChatRephraser(endpoint=server.endpoint()).rephrase(["a cat"])


def test_what_may_pass_is_asked_again():
    answers = [Raw(status=503), Raw(status=429), chat("a cat, soft light")]
    with served(lambda _: answers.pop(0)) as server:
        assert ChatRephraser(endpoint=server.endpoint(), chat=AT_ONCE).rephrase(["a cat"]) == [
            "a cat, soft light"
        ]
    assert len(server.requests) == 3


def test_what_does_not_pass_is_told_after_the_retries():
    with served(lambda _: Raw(status=503)) as server, pytest.raises(ConnectionError, match="503"):
        ChatRephraser(endpoint=server.endpoint(), chat=AT_ONCE).rephrase(["a cat"])
    assert len(server.requests) == 3


def test_a_refusal_is_not_asked_again():
    with served(lambda _: Raw(status=400, body=b"no")) as server, pytest.raises(EndpointError, match="400"):
        ChatRephraser(endpoint=server.endpoint(), chat=AT_ONCE).rephrase(["a cat"])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "best"},
        {"k": 0},
        {"max_words": 0},
        {"chat": {"at_once": 0}},
        {"chat": {"retry": 1}},
        {"endpoint": {"url": "http://127.0.0.1:9/v1"}},
    ],
)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError):
        ChatRephraser(**{"endpoint": ENDPOINT, **settings})


@pytest.mark.parametrize("rephraser", [Template(FULL), ChatRephraser(endpoint=ENDPOINT)])
def test_rephrasers_pickle(rephraser):
    assert pickle.loads(pickle.dumps(rephraser)) == rephraser
