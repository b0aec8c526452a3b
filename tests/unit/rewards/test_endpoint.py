import asyncio
import threading

import pytest

from rewards.endpoint import Endpoint, EndpointError, Reply, as_endpoint, together
from rlhf.errors import ConfigError
from tests.unit.rewards.served_models import Raw, chat, served

MESSAGES = [{"role": "user", "content": "hi"}]
KEY = "sk-a-very-secret-key"


def ask(endpoint: dict, **more) -> Reply:
    return asyncio.run(as_endpoint(endpoint).chat(MESSAGES, **more))


def test_chat_asks_at_temperature_0_with_a_fixed_seed() -> None:
    with served(lambda _: chat("hello")) as server:
        assert ask(server.endpoint()) == Reply(text="hello", is_complete=True)
    (request,) = server.requests
    assert server.paths == ["/v1/chat/completions"]
    assert request == {
        "model": "judge",
        "messages": MESSAGES,
        "temperature": 0.0,
        "seed": 0,
        "max_tokens": 1024,
    }
    assert "Authorization" not in server.headers[0]


def test_parameters_are_added_and_null_takes_one_out() -> None:
    parameters = {"max_tokens": None, "max_completion_tokens": 9, "seed": 7}
    with served(lambda _: chat("hello")) as server:
        ask(server.endpoint(parameters=parameters))
    assert "max_tokens" not in server.requests[0]
    assert (server.requests[0]["max_completion_tokens"], server.requests[0]["seed"]) == (9, 7)


@pytest.mark.parametrize(
    ("reason", "is_complete"), [("stop", True), ("length", False), ("content_filter", False)]
)
def test_a_cut_reply_is_not_complete(reason: str, is_complete: bool) -> None:
    with served(lambda _: chat("hello", reason)) as server:
        assert ask(server.endpoint()).is_complete is is_complete


def test_the_key_comes_from_the_environment_and_stands_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with served(lambda _: Raw(401, f"Incorrect API key provided: {KEY}".encode())) as server:
        with pytest.raises(EndpointError, match=r"status 401: Incorrect API key provided: \*\*\*") as caught:
            ask(server.endpoint(key_env="JUDGE_KEY"))
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(caught.value)
    assert KEY not in repr(Endpoint(url="http://h", model="m", key_env="JUDGE_KEY"))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_status_that_may_pass_is_a_connection_error(status: int) -> None:
    with (
        served(lambda _: Raw(status, b"busy")) as server,
        pytest.raises(ConnectionError, match=f"status {status}: busy"),
    ):
        ask(server.endpoint())


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_status_that_will_not_pass_is_an_endpoint_error(status: int) -> None:
    with (
        served(lambda _: Raw(status, b"no")) as server,
        pytest.raises(EndpointError, match=f"status {status}: no"),
    ):
        ask(server.endpoint())


def test_a_redirect_is_not_followed() -> None:
    with (
        served(lambda _: chat("hello")) as other,
        served(lambda _: Raw(307, location=other.address)) as server,
    ):
        with pytest.raises(EndpointError, match="status 307"):
            ask(server.endpoint())
        assert other.requests == []


def break_off(_body: dict) -> dict:
    raise ConnectionError


def test_a_broken_connection_is_a_connection_error() -> None:
    with served(break_off) as server, pytest.raises(ConnectionError, match="ServerDisconnected"):
        ask(server.endpoint())
    with pytest.raises(ConnectionError, match="Cannot connect"):
        ask(server.endpoint())


def test_a_slow_server_is_a_timeout_error() -> None:
    def slow(_body: dict) -> dict:
        given_up.wait(60)
        return chat("late")

    given_up = threading.Event()
    with served(slow) as server:
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.1 s"):
            ask(server.endpoint(timeout_s=0.1))
        given_up.set()


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"7", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 7}}]}'],
)
def test_a_reply_of_another_form_is_an_endpoint_error(body: bytes) -> None:
    with served(lambda _: Raw(200, body)) as server, pytest.raises(EndpointError):
        ask(server.endpoint())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000", "model": "m"}, "endpoint.url must be an http"),
        ({"url": "http://user:secret@h/v1", "model": "m"}, "endpoint.url must be an http"),
        ({"url": "http://h/v1?key=secret", "model": "m"}, "endpoint.url must be an http"),
        ({"url": "http://h", "model": "m", "key_env": "sk-secret"}, "never the key itself"),
        ({"url": "http://h", "model": "m", "key_env": "NO_SUCH_KEY_HERE"}, "that variable is not set"),
        ({"url": "http://h", "model": "m", "timeout_s": 0}, "timeout_s is 0"),
        ({"url": "http://h", "model": "m", "api_key": "x"}, "unknown \\['api_key'\\]"),
        ({"url": "http://h"}, "missing \\['model'\\]"),
    ],
)
def test_a_bad_endpoint_is_refused_when_it_is_made(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        as_endpoint(settings)
    assert "secret" not in str(caught.value)


def test_together_keeps_the_order_and_the_limit() -> None:
    running: list[int] = []
    most = 0

    async def one(index: int) -> int:
        nonlocal most
        running.append(index)
        most = max(most, len(running))
        await asyncio.sleep(0.001 * (5 - index))
        running.remove(index)
        return index

    assert asyncio.run(together([one(i) for i in range(5)], at_once=2)) == list(range(5))
    assert most == 2


def test_together_raises_the_first_error_and_ends_the_rest() -> None:
    ended: list[str] = []

    async def fail() -> None:
        raise ConnectionError("gone")

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("wait")

    async def run() -> None:
        with pytest.raises(ConnectionError, match="gone"):
            await together([wait(), fail(), wait(), wait()], at_once=2)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
    assert ended
