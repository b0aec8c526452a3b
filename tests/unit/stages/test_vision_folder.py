"""A random model that sees images, from a recipe's `model` alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoImageProcessor, AutoTokenizer

from rlhf.config.schema import ModelConfig
from rlhf.errors import ModelError
from rlhf.stages.model_folder import prepare_model_folder
from tests.tiny import VISION, save_tiny, save_tiny_vision, tiny_config


def model(given: dict[str, Any], **changes: Any) -> ModelConfig:
    return ModelConfig(**({"config": given, "tokenizer": "characters", "dtype": "float32"} | changes))


def changed(section: str, **values: Any) -> dict[str, Any]:
    return VISION | {section: VISION[section] | values}


def test_folder_has_processor_and_the_ids_of_the_tokenizer(tmp_path: Path) -> None:
    settings = {"min_pixels": 1024, "max_pixels": 2048}
    folder = prepare_model_folder(model(VISION, image_processor=settings), tmp_path, seed=0)
    config = json.loads((Path(folder) / "config.json").read_text())
    known = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert config["image_token_id"] == known["<|image_pad|>"]
    assert config["vision_start_token_id"] == known["<|vision_start|>"]
    assert config["text_config"]["eos_token_id"] == known["<eos>"]
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (processor.patch_size, processor.merge_size) == (8, 2)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (1024, 2048)


def test_folder_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    one, two = (save_tiny_vision(tmp_path / name) for name in "ab")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            model(
                changed("text_config", rope_parameters={"rope_type": "default", "mrope_section": [4, 4, 4]})
            ),
            r"mrope_section is \[4, 4, 4\] and head_dim is 32: expected sections that add up to 16",
        ),
        (model(changed("text_config", num_attention_heads=4)), "head_dim is 16, expected 32 or more"),
        (model(changed("vision_config", hidden_size=32)), "the tower gives vectors of 32 numbers"),
        (model(tiny_config(vocab_size=128), image_processor={}), "model_type 'qwen3', which sees no images"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, given: ModelConfig, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        prepare_model_folder(given, tmp_path, seed=0)


def test_tokenizer_without_image_tokens_is_refused(tmp_path: Path) -> None:
    text = save_tiny(tmp_path / "text")
    with pytest.raises(ModelError, match=r"model\.tokenizer has no <\|vision_start\|>"):
        prepare_model_folder(model(VISION, tokenizer=str(text)), tmp_path / "seeing", seed=0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"freeze": {"vision": True, "projector": True, "text": True}}, "all parts are frozen"),
        ({"freeze": {"text": True}, "lora": {}}, "nothing would be trained"),
        ({"image_processor": {"min_pixels": 9, "max_pixels": 4}}, "must not be above"),
        ({"config": None, "path": "x", "tokenizer": None, "image_processor": {}}, "goes with model.config"),
    ],
)
def test_keys_that_exclude_each_other_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        model(VISION, **changes)
