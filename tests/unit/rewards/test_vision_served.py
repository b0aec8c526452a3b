import base64
import pickle
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from rewards.endpoint import EndpointError
from rewards.vision_served import ServedHead
from rlhf.errors import ConfigError, DataError
from tests.unit.rewards.served_models import Raw, served

RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (40, 20), "blue")


@pytest.fixture
def head(tmp_path):
    """A file as LAION's: red is worth 3, blue -1, in two layers with no bias before the last."""
    layers = {
        "layers.0.weight": np.array([[1, 0, 0], [0, 0, 1]], np.float32),
        "layers.2.weight": np.array([[3, -1]], np.float32),
        "layers.2.bias": np.array([0.5], np.float32),
    }
    save_file(layers, tmp_path / "head.safetensors")
    return str(tmp_path / "head.safetensors")


def picture_of(body: dict[str, Any]) -> Image.Image:
    (part,) = body["messages"][0]["content"]
    return Image.open(BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))


def colour(body: dict[str, Any]) -> dict[str, Any]:
    """An embedding: the colour of the corner, in 0 to 255."""
    return {"data": [{"embedding": list(picture_of(body).getpixel((0, 0)))}]}


def test_each_image_is_scored_by_its_served_embedding_of_length_one(head):
    with served(colour) as server:
        judge = ServedHead(path=head, endpoint=server.endpoint())
        assert judge.score([RED, BLUE, RED]) == pytest.approx([3.5, -0.5, 3.5])
        assert judge.score([]) == []
    assert set(server.paths) == {"/v1/embeddings"}
    assert server.requests[0]["encoding_format"] == "float"


def test_an_embedding_is_taken_as_it_is_where_the_head_wants_it(head):
    with served(colour) as server:
        judge = ServedHead(path=head, endpoint=server.endpoint(), normalise=False)
        assert judge.score([RED]) == pytest.approx([255 * 3 + 0.5])


def test_large_images_are_sent_smaller(head):
    with served(colour) as server:
        ServedHead(path=head, endpoint=server.endpoint(), max_side=10).score([BLUE])
    assert picture_of(server.requests[0]).size == (10, 5)


def test_a_model_of_another_width_is_refused(head):
    with (
        served(lambda _: {"data": [{"embedding": [1.0, 2.0]}]}) as server,
        pytest.raises(DataError, match="made for another embedding"),
    ):
        ServedHead(path=head, endpoint=server.endpoint()).score([RED])


@pytest.mark.parametrize("reply", [{}, {"data": []}, {"data": [{"embedding": "x"}]}, {"data": [{}]}])
def test_a_reply_without_an_embedding_is_refused(head, reply):
    with served(lambda _: reply) as server, pytest.raises(EndpointError, match="sent no embedding"):
        ServedHead(path=head, endpoint=server.endpoint()).score([RED])


def test_embeddings_of_several_widths_are_refused(head):
    def uneven(body: dict[str, Any]) -> dict[str, Any]:
        return {"data": [{"embedding": [1.0] * (3 if picture_of(body).width == 8 else 4)}]}

    with served(uneven) as server, pytest.raises(EndpointError, match=r"\[3, 4\] numbers"):
        ServedHead(path=head, endpoint=server.endpoint()).score([RED, BLUE])


def test_what_may_pass_by_itself_is_asked_again(head):
    answers = [Raw(status=503), Raw(status=503)]
    with served(lambda body: answers.pop() if answers else colour(body)) as server:
        judge = ServedHead(path=head, endpoint=server.endpoint(), chat={"pause_s": 0.01})
        assert judge.score([RED]) == pytest.approx([3.5])
    assert len(server.requests) == 3


def test_the_version_names_model_head_and_size(head):
    endpoint = {"url": "http://127.0.0.1:9/v1", "model": "clip"}
    judge = ServedHead(path=head, endpoint=endpoint)
    assert judge.version.startswith("clip True")
    assert judge.version != ServedHead(path=head, endpoint=endpoint, max_side=100).version
    assert judge.version != ServedHead(path=head, endpoint={**endpoint, "model": "other"}).version
    assert pickle.loads(pickle.dumps(judge)).version == judge.version


def test_settings_that_cannot_be_used_are_refused(head, tmp_path):
    endpoint = {"url": "http://127.0.0.1:9/v1", "model": "clip"}
    with pytest.raises(ConfigError, match="max_side is 0"):
        ServedHead(path=head, endpoint=endpoint, max_side=0)
    with pytest.raises(DataError, match=r"none\.safetensors cannot be read as a head"):
        ServedHead(path=str(tmp_path / "none.safetensors"), endpoint=endpoint)
