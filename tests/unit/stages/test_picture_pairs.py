"""A dual encoder learns which of two pictures suits a text; its folder gives the scores that it was judged by."""

import json

import pytest
import torch
from torch.nn.functional import logsigmoid, normalize
from transformers import AutoModel

from rlhf.config.algorithm import LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.config.trainer import DpoConfig, RewardModelConfig
from rlhf.data.dual_inputs import DualInputs
from rlhf.data.prompts import load_prompts
from rlhf.episodes.render import Renderer
from rlhf.errors import DataError, ModelError
from rlhf.stages.preference_rows import check_pair, read_pairs
from rlhf.stages.reward_model import run_reward_model
from rlhf.stages.trained_rows import IMAGES
from tests.dual import CLIP, SIGLIP, picture_pairs, save_dual
from tests.seen_pairs import source_of


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return Renderer(model_folder=str(save_dual(tmp_path_factory.mktemp("clip"), CLIP)), template="{prompt}")


def read(renderer, rows, folder, **changes):
    config = RewardModelConfig(source=source_of(rows, folder / "rows.jsonl"), **changes)
    return read_pairs(config.source, config, renderer=renderer, key="reward_model.source")


def test_pairs_of_pictures_are_ids_of_their_text_and_two_references(renderer, tmp_path):
    (row,) = read(renderer, picture_pairs(tmp_path, 1), tmp_path).rows
    tokenizer = renderer.tokenizer
    assert row["text_ids"] == [*tokenizer("blue")["input_ids"], tokenizer.eos_token_id]
    assert row[IMAGES] == [str(tmp_path / "0-blue.png"), str(tmp_path / "0-red.png")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rejected": "0-blue.png"}, "row 0: `chosen` and `rejected` are the same picture"),
        ({"rejected": "nowhere.png"}, "row 0: `rejected`: there is no image file"),
        ({"chosen": "http://x/a.png"}, "is the address .*never fetched"),
        ({"prompt": "a" * 16}, "row 0 has 17 tokens, and the model reads 16 at most. Texts are never cut"),
        ({"prompt": "<image>a", "images": ["0-red.png"]}, "`prompt` has 1 messages and 1 images"),
    ],
)
def test_rows_that_are_no_pair_of_pictures_are_refused_by_name(
    renderer, tmp_path, monkeypatch, changes, message
):
    monkeypatch.chdir(tmp_path)
    (row,) = picture_pairs(tmp_path, 1)
    row = {**row, "chosen": "0-blue.png", "rejected": "0-red.png"} | changes
    with pytest.raises(DataError, match=message):
        read(renderer, [row], tmp_path)


def test_longer_texts_are_dropped_where_asked_and_check_needs_no_model(renderer, tmp_path):
    rows = picture_pairs(tmp_path, 2)
    rows[1]["prompt"] = "a" * 10
    found = read(renderer, rows, tmp_path, max_length=8, on_long="drop")
    assert (len(found.rows), found.num_dropped) == (1, 1)
    config = DpoConfig(source=source_of(rows, tmp_path / "rows.jsonl"))
    for prompt in load_prompts(config.source, key="k", require_reference=False):
        check_pair(prompt, margin=None, where="k")
    with pytest.raises(DataError, match="is a dual encoder, which writes no answers"):
        read_pairs(config.source, config, renderer=renderer, key="dpo.source")


def test_towers_whose_embeddings_differ_in_size_are_refused(tmp_path):
    other = {**SIGLIP, "text_config": {**SIGLIP["text_config"], "projection_size": 16}}
    with pytest.raises(ModelError, match=r"projection_size is 16 and vision_config\.hidden_size is 32"):
        save_dual(tmp_path, other)


def logit(model, inputs, row, side):
    """The logit of one text and one picture, from the embeddings."""
    texts = model.get_text_features(**inputs.texts([row["text_ids"]])).pooler_output
    pictures = model.get_image_features(pixel_values=inputs.pictures([row[IMAGES][side]])).pooler_output
    found = model.logit_scale.exp() * (normalize(texts, dim=-1) * normalize(pictures, dim=-1)).sum()
    return found + model.logit_bias if "logit_bias" in dict(model.named_parameters()) else found


@pytest.mark.slow
@pytest.mark.parametrize(("config", "lora"), [(CLIP, None), (CLIP, LoraConfig(rank=4)), (SIGLIP, None)])
def test_a_dual_encoder_learns_to_prefer_and_is_saved_as_what_it_was(config, lora, tmp_path):
    renderer = Renderer(model_folder=str(save_dual(tmp_path / "start", config)), template="{prompt}")
    source = source_of(picture_pairs(tmp_path, 24), tmp_path / "rows.jsonl")
    stage = RewardModelConfig(
        source=source, heldout=source, num_steps=20, batch_size=8, microbatch_size=4, lr=3e-3, threads=1, max_length=16,
    )  # fmt: skip
    model = ModelConfig(path=renderer.model_folder, lora=lora)
    run_reward_model(stage, renderer=renderer, out_folder=tmp_path / "out", seed=0, model=model)
    found = json.loads((tmp_path / "out" / "reward_model.json").read_text())["metrics"]
    rows = read_pairs(stage.source, stage, renderer=renderer, key="reward_model.source").rows
    trained = AutoModel.from_pretrained(tmp_path / "out").eval()
    inputs = DualInputs(tmp_path / "out")
    with torch.no_grad():
        gaps = torch.stack(
            [logit(trained, inputs, row, 0) - logit(trained, inputs, row, 1) for row in rows]
        ).flatten()
        start = AutoModel.from_pretrained(tmp_path / "start").eval()
        first = torch.stack(
            [logit(start, inputs, row, 0) - logit(start, inputs, row, 1) for row in rows]
        ).flatten()
    assert (gaps > 0).float().mean().item() == pytest.approx(found["preference/accuracy_after"])
    assert (first > 0).float().mean().item() == pytest.approx(found["preference/accuracy_before"])
    assert found["preference/accuracy_after"] > 0.9
    assert -logsigmoid(gaps).mean() < -logsigmoid(first).mean()
