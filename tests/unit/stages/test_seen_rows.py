"""Rows that show images become ids with their image tokens whole; what cannot is refused by name."""

import pytest
import torch

from rlhf.config.schema import ModelConfig
from rlhf.config.trainer import DpoConfig
from rlhf.data.prompts import load_prompts
from rlhf.data.vision_model import ImageProcessor
from rlhf.errors import DataError, ModelError
from rlhf.stages.dpo import run_dpo
from rlhf.stages.preference_rows import read_pairs
from rlhf.stages.seen_batches import SeenBatches
from rlhf.stages.sft import tokenised_rows
from rlhf.stages.sft_process import packed_batch, padded_batch
from rlhf.stages.trained_rows import IMAGES, check_all_show, images_digest
from tests.seen_pairs import seeing_renderer, seen_rows, source_of
from tests.tiny import picture


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return seeing_renderer(tmp_path_factory.mktemp("model"))


def read(renderer, rows, file, **changes):
    config = DpoConfig(source=source_of(rows, file / "rows.jsonl"), **changes)
    return read_pairs(config.source, config, renderer=renderer, key="dpo.source")


def test_pairs_hold_every_image_token_and_their_images_in_order(renderer, tmp_path):
    rows = seen_rows(tmp_path)
    found = read(renderer, rows, tmp_path).rows
    assert [row[IMAGES] for row in found[:4]] == [
        rows[0]["images"], rows[1]["images"], rows[2]["images"], [],
    ]  # fmt: skip
    processor = ImageProcessor(renderer.vision)
    for row in found:
        expected = sum(processor.num_tokens(image) for image in row[IMAGES])
        assert row["prompt_ids"].count(renderer.vision.image_id) == expected
    assert found[0]["chosen_ids"] == list(renderer.encode_completion("yes", where=""))


def test_pairs_of_trl_with_image_parts_are_those_of_placeholders(renderer, tmp_path):
    row = seen_rows(tmp_path)[0]
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"]}]}]

    def said(text):
        return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]

    trl = {"prompt": asked, "images": row["images"], "chosen": said("yes"), "rejected": said("no")}
    whole = {**trl, "chosen": asked + said("yes"), "rejected": asked + said("no")}
    plain = {"prompt": "<image>" + row["prompt"], "images": row["images"], "chosen": "yes", "rejected": "no"}
    found = read(renderer, [trl, whole, plain], tmp_path).rows
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "<image>a<image>"}, r"row .*:0 has 2 image placeholders and 1 images, .*Write <image>"),
        ({"images": ["http://x/y.png"]}, "is the address .*never fetched"),
        ({"images": ["nowhere.png"]}, "there is no image file"),
        (
            {"chosen": [{"role": "assistant", "content": [{"type": "image"}]}]},
            "`chosen`: an answer of the assistant shows an image",
        ),
        ({"chosen": "a<|image_pad|>"}, "chosen: its text spells an image token"),
        ({"prompt": "<|image_pad|>how many?"}, "becomes 2 image tokens, but it has 1 images"),
    ],
)
def test_rows_that_cannot_be_shown_are_refused_by_name(renderer, tmp_path, changes, message):
    row = {key: value for key, value in seen_rows(tmp_path)[0].items() if key != "id"}
    with pytest.raises(DataError, match=message):
        read(renderer, [row | changes], tmp_path)


def test_no_image_token_is_ever_cut(renderer, tmp_path):
    rows = seen_rows(tmp_path)[:2]
    whole = read(renderer, rows, tmp_path).rows
    first, second = (len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in whole)
    limit = second - 1
    assert first < second
    message = rf"row 1 has {second} tokens, more than dpo.max_length \({limit}\).*Rows are never cut"
    with pytest.raises(DataError, match=message):
        read(renderer, rows, tmp_path, max_length=limit)
    found = read(renderer, rows, tmp_path, max_length=limit, on_long="drop")
    assert (found.rows, found.num_dropped) == (whole[:1], 1)


def test_ranks_need_rows_that_all_show_images(renderer, tmp_path):
    rows = read(renderer, seen_rows(tmp_path), tmp_path).rows
    check_all_show(rows, num_ranks=1, kind="dpo")
    with pytest.raises(DataError, match=r"dpo: 3 of 12 rows show no image, and dpo\.num_ranks is 2"):
        check_all_show(rows, num_ranks=2, kind="dpo")


def test_digest_of_images_follows_their_content_not_their_names(tmp_path):
    image = picture(tmp_path, 1)
    rows = [{IMAGES: [image, image]}, {IMAGES: []}]
    first = images_digest(rows)
    assert images_digest([], rows) == first
    picture(tmp_path, 2, (32, 32))
    (tmp_path / "2-32x32.png").replace(image)
    assert images_digest(rows) != first
    assert images_digest([{"input_ids": [1]}]) is None


def test_demonstrations_with_images_have_one_turn(renderer, tmp_path):
    row = seen_rows(tmp_path)[0]
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"]}]}
    told = {"role": "assistant", "content": "ab"}
    rows = [row, {"messages": [asked, told], "images": row["images"]}]
    source = DpoConfig(source=source_of(rows, tmp_path / "rows.jsonl")).source
    prompts = load_prompts(source, key="sft.source", require_reference=False)
    first, second = tokenised_rows(prompts, renderer, key="sft.source")
    assert first == second
    source = DpoConfig(
        source=source_of([{**rows[1], "messages": [asked, told, asked, told]}], tmp_path / "rows.jsonl")
    ).source
    with pytest.raises(DataError, match="`messages` is"):
        tokenised_rows(load_prompts(source, key="k", require_reference=False), renderer, key="k")


@pytest.mark.parametrize("collate", [padded_batch, packed_batch])
def test_positions_of_fine_tuning_are_those_of_the_model(renderer, tmp_path, collate):
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(renderer.model_folder)
    source = DpoConfig(source=source_of(seen_rows(tmp_path), tmp_path / "rows.jsonl")).source
    prompts = load_prompts(source, key="k", require_reference=False)[:4]
    rows = [
        {"input_ids": ids, "labels": ids, IMAGES: list(prompt.images)}
        for prompt, (ids, _) in zip(prompts, tokenised_rows(prompts, renderer, key="k"), strict=True)
    ]
    batches = SeenBatches(collate, ImageProcessor(renderer.vision))
    found = batches(rows)
    with torch.no_grad():
        logits = model(**{k: v for k, v in found.items() if k != "labels"}, use_cache=False).logits
        start = 0
        for index, row in enumerate(rows):
            alone = batches([row])
            alone.pop("position_ids"), alone.pop("labels")
            expected = model(**alone).logits[0]
            length = len(row["input_ids"])
            of_row = logits[index, :length] if collate is padded_batch else logits[0, start : start + length]
            torch.testing.assert_close(of_row, expected, atol=2e-5, rtol=1e-4)
            start += length


def test_freezing_what_a_model_does_not_have_is_refused(tmp_path):
    from rlhf.episodes.render import Renderer
    from tests.tiny import save_tiny

    renderer = Renderer(model_folder=str(save_tiny(tmp_path / "model")), template="{prompt}")
    rows = [{"prompt": "a", "chosen": "yes", "rejected": "no"}]
    config = DpoConfig(source=source_of(rows, tmp_path / "rows.jsonl"), num_steps=1, batch_size=1)
    model = ModelConfig(path=renderer.model_folder, freeze={"vision": True})
    with pytest.raises(ModelError, match=r"model\.freeze names vision, which the model .* does not have"):
        run_dpo(config, renderer=renderer, out_folder=tmp_path / "out", seed=0, model=model)
