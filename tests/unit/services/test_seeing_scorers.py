"""Reward models that are shown images: what is served is what was trained, and who asks wrongly hears why."""

import base64
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from rewards.reward_model import ServedScorer
from rlhf.data.dual_inputs import DualInputs
from rlhf.data.records import parse_row
from rlhf.data.scoring_models import scoring_class
from rlhf.data.vision_model import ImageProcessor
from rlhf.services.hf_models import BadRequest
from rlhf.services.hf_scorers import Classifier, load_scorer
from rlhf.services.settings import ServiceSettings
from rlhf.stages.scoring_template import scoring_template
from rlhf.stages.seen_batches import image_inputs
from tests.dual import CLIP, SIGLIP, save_dual
from tests.seen_pairs import seeing_renderer, seen_rows
from tests.tiny import picture, save_tiny_classifier
from tests.unit.services.test_services import Live, settings_of


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    """Of a model with a random head, and the template that a reward_model stage leaves."""
    renderer = seeing_renderer(tmp_path_factory.mktemp("model"))
    folder = Path(renderer.model_folder)
    config = json.loads((folder / "config.json").read_text())
    torch.manual_seed(0)
    scoring_class(config).from_pretrained(folder, num_labels=1, dtype=torch.float32).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(scoring_template(renderer))
    return renderer


def settings(folder, **changes) -> ServiceSettings:
    return settings_of(Path(folder), **changes)


def uri(path: str) -> str:
    return f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def test_a_served_seeing_model_scores_as_it_was_trained_however_requests_are_batched(renderer, tmp_path):
    prompts = [parse_row(row, location="r", columns={}, key="k") for row in seen_rows(tmp_path)]
    answers = ["ab", "c", "ab", "abcd"] * 3
    folder = renderer.model_folder
    model = (
        scoring_class(json.loads((Path(folder) / "config.json").read_text())).from_pretrained(folder).eval()
    )
    processor = ImageProcessor(renderer.vision)

    def expected(prompt, answer):
        ids = [*renderer.encode_prompt(prompt), *renderer.encode_completion(answer, where="")]
        seen = image_inputs(processor, [prompt.images], torch.tensor([ids])) if prompt.images else {}
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids]), **seen).logits.item()

    live = Live(settings(folder))
    try:

        async def served():
            import asyncio

            scorer = ServedScorer(endpoint={"url": live.address, "model": "rm"}, with_thought=True)
            return await asyncio.gather(*(scorer(a, p) for p, a in zip(prompts, answers, strict=True)))

        scores = live.run(served())
    finally:
        live.close()
    assert scores == pytest.approx([expected(*one) for one in zip(prompts, answers, strict=True)], abs=1e-4)
    assert len({round(score, 4) for score in scores[:4]}) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}], "expected a data: URI"),
        ([{"type": "image_url", "image_url": {"url": "/etc/hostname"}}], "expected a data: URI"),
        (
            [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
            "cannot be read as an image",
        ),
        ([{"type": "audio", "audio": "x"}], "a part is"),
        ("<|image_pad|>", "becomes 1 image tokens, but it shows 0 images"),
    ],
)
def test_a_seeing_model_refuses_what_it_cannot_see(renderer, content, said):
    scorer = load_scorer(settings(renderer.model_folder))
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    with pytest.raises(BadRequest, match=said):
        scorer.read({"messages": messages})


def test_a_conversation_with_its_image_tokens_is_no_longer_than_allowed(renderer, tmp_path):
    image = {"type": "image_url", "image_url": {"url": uri(picture(tmp_path, 1))}}
    messages = [{"role": "user", "content": [image]}, {"role": "assistant", "content": "a"}]
    whole = load_scorer(settings(renderer.model_folder)).read({"messages": messages})
    scorer = load_scorer(settings(renderer.model_folder, max_model_len=len(whole.ids) - 1))
    with pytest.raises(BadRequest, match=f"it has {len(whole.ids)} tokens"):
        scorer.read({"messages": messages})


def test_a_model_of_text_refuses_images(tmp_path):
    scorer = load_scorer(settings(save_tiny_classifier(tmp_path)))
    assert isinstance(scorer, Classifier)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    with pytest.raises(BadRequest, match="this model sees none"):
        scorer.read({"messages": [{"role": "user", "content": [image]}]})


@pytest.mark.parametrize("config", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_a_served_dual_encoder_gives_its_logit_of_text_and_picture(config, tmp_path):
    from transformers import AutoModel

    folder = save_dual(tmp_path / "model", config)
    scorer = load_scorer(settings(folder))
    images = [picture(tmp_path, seed, (16, 16)) for seed in (1, 2)]
    shown = [{"type": "image_url", "image_url": {"url": uri(image)}} for image in images]
    bodies = [
        {"messages": [{"role": "user", "content": [shown[0], {"type": "text", "text": "what?"}]},
                      {"role": "assistant", "content": "a red disc"}]},
        {"messages": [{"role": "user", "content": "draw"}, {"role": "assistant", "content": [shown[1]]}]},
        {"messages": [{"role": "user", "content": [shown[1], {"type": "text", "text": "draw"}]}]},
    ]  # fmt: skip
    found = scorer.classify([scorer.read(body) for body in bodies])
    model, inputs = AutoModel.from_pretrained(folder).eval(), DualInputs(folder)
    expected = []
    for text, image in (("a red disc", images[0]), ("draw", images[1])):
        given = inputs.texts([inputs.text_ids(text, where="")])
        with torch.no_grad():
            output = model(**given, pixel_values=inputs.pictures([image]))
        expected.append(output.logits_per_text.item())
    assert [one for (one,) in found] == pytest.approx([expected[0], expected[1], expected[1]], abs=1e-5)


def test_a_dual_encoder_refuses_other_than_one_picture_and_longer_texts(tmp_path):
    scorer = load_scorer(settings(save_dual(tmp_path, CLIP)))
    with pytest.raises(BadRequest, match="it shows 0 pictures"):
        scorer.read({"messages": [{"role": "user", "content": "a"}]})
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    image = {"type": "image_url", "image_url": {"url": uri(str(path))}}
    with pytest.raises(BadRequest, match="the text has 41 tokens, and the model reads 16 at most"):
        scorer.read({"messages": [{"role": "user", "content": [image, {"type": "text", "text": "a" * 40}]}]})
