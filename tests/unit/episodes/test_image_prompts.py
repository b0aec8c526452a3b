"""Prompts with images as ids: expanded, checked, never cut."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlhf.data.records import parse_row
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError
from tests.tiny import picture, save_tiny, save_tiny_vision
from tests.vision_rows import prompts

QWEN = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}\n{% endfor %}<assistant>"
)
"""As Qwen2-VL's: text as it is, parts one by one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vision(tmp_path_factory.mktemp("vision"))


def test_each_image_has_the_tokens_of_its_size(folder: Path, tmp_path: Path):
    renderer = Renderer(model_folder=str(folder), template="{prompt}")
    assert renderer.vision is not None
    start, seen, end = renderer.vision.start_id, renderer.vision.image_id, renderer.vision.end_id
    text = renderer.tokenizer.encode
    two, one, _, none = (renderer.encode_prompt(prompt) for prompt in prompts(tmp_path))
    assert two == (
        *text("a"), start, *[seen] * 4, end, *text("b"), start, *[seen] * 4, end, *text("c"),
    )  # fmt: skip
    assert one == (start, *[seen] * 6, end, *text("how many?"))
    assert none == tuple(text("no picture here"))


def test_chat_template_gives_what_it_gives_for_parts(folder: Path, tmp_path: Path):
    template = tmp_path / "chat.jinja"
    template.write_text(QWEN)
    renderer = Renderer(model_folder=str(folder), chat_template=str(template))
    prompt = prompts(tmp_path)[0]
    parts = [
        {"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}, {"type": "image"},
        {"type": "text", "text": "c"},
    ]  # fmt: skip
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": parts}],
        chat_template=QWEN,
        add_generation_prompt=True,
        return_dict=False,
    )
    assert renderer.vision is not None
    found = list(renderer.encode_prompt(prompt))
    collapsed = [
        t for i, t in enumerate(found) if i == 0 or t != renderer.vision.image_id or found[i - 1] != t
    ]
    assert collapsed == expected


def test_text_that_spells_an_image_token_is_refused(folder: Path, tmp_path: Path):
    renderer = Renderer(model_folder=str(folder), template="{prompt}")
    rows = [
        {"prompt": "x <|image_pad|>"},
        {"prompt": "x <|image_pad|>", "images": [picture(tmp_path, 0)]},
    ]
    for number, row in enumerate(rows):
        prompt = parse_row(row, location="r:0", columns={}, key="k")
        with pytest.raises(
            DataError, match=rf"prompt r:0: its text becomes {number + 1} image tokens, but it has"
        ):
            renderer.encode_prompt(prompt)


def test_image_tokens_are_never_cut(folder: Path, tmp_path: Path):
    renderer = Renderer(model_folder=str(folder), template="{prompt}")
    asked = prompts(tmp_path)
    big = replace(asked[1], id="big", images=(picture(tmp_path, 0, (64, 64)),))
    with pytest.raises(DataError) as caught:
        renderer.check_prompts([*asked, big], max_prompt_tokens=24, key="task.train")
    assert "task.train: 1 of 5 prompts are longer than sampling.max_prompt_tokens (24)" in str(caught.value)
    assert "row big with 27 tokens, 16 of them of its images, which are never cut" in str(caught.value)


def test_a_model_that_sees_nothing_refuses_images(tmp_path: Path):
    renderer = Renderer(model_folder=str(save_tiny(tmp_path)), template="{prompt}")
    with pytest.raises(
        DataError, match=r"prompt r:0 has 2 images, but the model .* sees none here: expected one of"
    ):
        renderer.encode_prompt(prompts(tmp_path)[0])


def test_tokens_of_images_are_special(folder: Path):
    renderer = Renderer(model_folder=str(folder), template="{prompt}")
    assert renderer.vision is not None
    assert {*renderer.vision.banned, renderer.vision.start_id, renderer.vision.end_id} <= {
        *renderer.special_ids
    }
    assert renderer.decode([renderer.vision.start_id]) == ""
