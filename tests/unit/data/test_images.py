"""Images of rows: references, slots, what is refused."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from rlhf.config.task import SourceConfig
from rlhf.data.images import image_reference, image_size, open_image
from rlhf.data.prompts import load_prompts
from rlhf.data.records import parse_row
from rlhf.errors import DataError
from rlhf.types import Prompt
from tests.tiny import picture


def png(colour: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), (colour, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def data_uri(colour: int = 7) -> str:
    return "data:image/png;base64," + base64.b64encode(png(colour)).decode()


def parsed(row: dict) -> Prompt:
    return parse_row(row, location="rows.jsonl:3", columns={}, key="task.train")


def texts(prompt: Prompt) -> list[str]:
    return [message.content for message in prompt.messages]


def test_images_without_slots_stand_before_the_first_user_turn():
    prompt = parsed(
        {
            "prompt": [{"role": "system", "content": "look"}, {"role": "user", "content": "what?"}],
            "images": [data_uri(1), data_uri(2)],
        }
    )
    assert texts(prompt) == ["look", "<image><image>what?"]
    assert [image_size(image) for image in prompt.images] == [(8, 4)] * 2


def test_slots_of_a_verl_row_stay_where_they_are():
    prompt = parsed({"prompt": "<image>a<image>b", "images": [data_uri(1), data_uri(2)]})
    assert texts(prompt) == ["<image>a<image>b"]
    assert len(prompt.images) == 2


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image", "image": data_uri()},
        {"type": "image_url", "image_url": {"url": data_uri()}},
    ],
)
def test_parts_of_a_message_become_slots(part):
    content = [{"type": "text", "text": "see "}, part, {"type": "text", "text": "?"}]
    row = {"prompt": [{"role": "user", "content": content}]}
    if len(part) == 1:
        row["images"] = [{"bytes": png(), "path": None}]
    prompt = parsed(row)
    assert texts(prompt) == ["see <image>?"]
    assert open_image(prompt.images[0]).getpixel((0, 0)) == (7, 0, 0)


@pytest.mark.parametrize("images", [[data_uri()], []])
def test_another_number_of_slots_than_of_images_is_refused(images):
    with pytest.raises(DataError) as caught:
        parsed({"prompt": "<image> and <image>", "images": images})
    assert (
        f"task.train: row rows.jsonl:3 has 2 image placeholders and {len(images)} images, expected as many"
        in (str(caught.value))
    )
    assert "or nowhere: then they stand before the first user message" in str(caught.value)


def test_a_part_without_an_image_is_refused():
    with pytest.raises(DataError, match="has 1 image placeholders and 0 images"):
        parsed({"prompt": [{"role": "user", "content": [{"type": "image"}]}]})


def test_a_slot_in_a_row_without_images_is_text():
    prompt = parsed({"prompt": "what does <image> mean in HTML?"})
    assert prompt.images == ()
    assert texts(prompt) == ["what does <image> mean in HTML?"]


def test_images_in_column_and_messages_are_refused():
    content = [{"type": "image", "image": data_uri()}]
    with pytest.raises(DataError, match="has 1 images in its column and 1 in its messages"):
        parsed({"prompt": [{"role": "user", "content": content}], "images": [data_uri()]})


@pytest.mark.parametrize("address", ["http://x/cat.png", "https://x/cat.png", "HTTPS://x/cat.png"])
def test_addresses_are_refused_not_fetched(address):
    with pytest.raises(DataError, match=r"`images\[0\]` is the address .* images are never fetched"):
        parsed({"prompt": "x", "images": [address]})


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (3, "is 3, expected a path, a data: URI"),
        ({"path": None}, "expected a path, a data: URI"),
        ("no/such.png", "there is no image file"),
        ("data:image/png;base64,!!", "is not base64"),
        ("data:image/png,abc", "is not base64, expected data:image"),
        ({"bytes": b"not a picture"}, "cannot be read as an image"),
    ],
)
def test_what_is_no_image_is_refused_with_the_row(image, problem):
    with pytest.raises(DataError, match=r"row rows.jsonl:3: `images\[0\]`") as caught:
        parsed({"prompt": "x", "images": [image]})
    assert problem in str(caught.value)


def test_a_path_becomes_absolute_and_a_pil_image_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = picture(tmp_path, 0)
    monkeypatch.chdir(tmp_path)
    assert image_reference(Path(path).name, where="x") == path
    found = image_reference(Image.open(path), where="x")
    assert open_image(found).tobytes() == open_image(path).tobytes()


@pytest.mark.parametrize(
    ("value", "is_image"),
    [(data_uri(), True), ({"bytes": png()}, True), ("python:3.11", False), (None, False)],
)
def test_column_image_is_one_where_it_holds_one(value, is_image):
    prompt = parsed({"prompt": "x", "image": value})
    assert len(prompt.images) == is_image
    assert texts(prompt) == ["<image>x" if is_image else "x"]


def rows(*, seed: int, size: int) -> list[dict]:
    return [{"prompt": f"{i}", "images": [data_uri(i % 2)], "reference": "1"} for i in range(size)]


def test_bytes_are_written_once_by_their_content(tmp_path: Path):
    source = SourceConfig(generator=f"{__file__}:rows", limit=6)
    prompts = load_prompts(source, key="task.train", require_reference=True, images=tmp_path / "images")
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    assert len(files) == 2
    assert {image for p in prompts for image in p.images} == {str(tmp_path / "images" / f) for f in files}
    again = load_prompts(source, key="task.train", require_reference=True, images=tmp_path / "images")
    assert again == prompts
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()} == files


def test_bytes_stay_in_the_reference_without_a_folder():
    source = SourceConfig(generator=f"{__file__}:rows", limit=1)
    (prompt,) = load_prompts(source, key="task.train", require_reference=True)
    assert prompt.images == (data_uri(0).replace("image/png", "image/png"),)
