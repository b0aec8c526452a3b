"""A random dual encoder is a complete folder; what vLLM or transformers would refuse later is refused here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from rlhf.config.schema import ModelConfig
from rlhf.data.dual_encoder import preparation_of
from rlhf.errors import ModelError
from rlhf.vision.model_folder import prepare_dual_encoder
from tests.retrievers import Squares, tiny_config, tiny_dual_encoder

TEXTS = ("A dark red square", "pale-blue, isn't it?!", "a dog")
each_kind = pytest.mark.parametrize("kind", ["clip", "siglip"])


def tiny(
    kind: str = "clip", *, text: dict[str, Any] | None = None, vision: Any = None, **top: Any
) -> ModelConfig:
    config = tiny_config(kind) | top
    config["text_config"] = config["text_config"] | (text or {})
    config["vision_config"] = config["vision_config"] | (vision or {})
    return ModelConfig(config=config, tokenizer="words", dtype="float32")


@each_kind
def test_random_model_is_a_complete_folder(tmp_path: Path, kind: str):
    folder = prepare_dual_encoder(tiny(kind), tmp_path / "model", texts=TEXTS, seed=0)
    model = AutoModel.from_pretrained(folder)
    assert model.config.model_type == kind
    assert model.config.text_config.eos_token_id == 3
    pixels = preparation_of(folder)(Squares().load(list(Squares().ids())[:3]), return_tensors="pt")[
        "pixel_values"
    ]
    assert pixels.shape == (3, 3, 16, 16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.text_config.vocab_size == len(tokenizer)
    assert tokenizer.pad_token_id == model.config.text_config.pad_token_id == 1


def test_every_word_of_the_texts_is_known(tmp_path: Path):
    folder = prepare_dual_encoder(tiny(), tmp_path / "model", texts=TEXTS, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(0) == "a"
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert tokenizer.unk_token_id not in ids, tokenizer.convert_ids_to_tokens(ids)
    assert tokenizer("A DARK red Square")["input_ids"] == tokenizer("a dark red square")["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("a teal square")["input_ids"]


def test_random_model_follows_from_the_seed_alone(tmp_path: Path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = AutoModel.from_pretrained(tiny_dual_encoder(tmp_path / name, seed=seed))
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_existing_folder_is_used_as_it_is(tmp_path: Path):
    folder = tiny_dual_encoder(tmp_path / "model")
    found = prepare_dual_encoder(ModelConfig(path=folder), tmp_path / "unused", texts=(), seed=0)
    assert found == folder
    assert not (tmp_path / "unused").exists()


def test_existing_folder_of_a_language_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(
        ModelError, match=r"'qwen3' is no dual encoder of texts and images .*expected one of clip, siglip"
    ):
        prepare_dual_encoder(ModelConfig(path=str(tmp_path)), tmp_path / "unused", texts=(), seed=0)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            ModelConfig(config=tiny_config(), tokenizer="characters"),
            r"model\.tokenizer is 'characters', expected 'words'",
        ),
        (ModelConfig(config=tiny_config()), r"model\.tokenizer is None, expected 'words'"),
        (tiny(text={"vocab_size": 5}), r"model\.config\.text_config\.vocab_size is 5, but .* have 18 words"),
        (tiny(text={"num_attention_heads": 4}), r"model\.config\.text_config: hidden_size / .* is 16, expected 32"),
        (tiny(vision={"num_attention_heads": 4}), r"model\.config\.vision_config: .* is 16, expected 32 or more"),
        (
            tiny(projection_dim=32, text={"projection_dim": 32}),
            r"text_config\.hidden_size is 64 but embeddings have 32 numbers: .*Raise projection_dim",
        ),
        (tiny("siglip", text={"projection_size": 32}), "text_config.hidden_size is 64 but embeddings have 32"),
        (
            tiny(text={"projection_dim": 128}),
            r"text_config\.projection_dim is 128 and model\.config\.projection_dim is 64: .*Set both alike",
        ),
        (tiny(model_type="qwen3"), "model type 'qwen3' is no dual encoder"),
        (tiny(model_type="siglip2"), "model type 'siglip2' is no dual encoder"),
        (tiny(model_type="clipp"), "model cannot be read: .*clipp"),
        (ModelConfig(path="./nowhere"), r"model\.path: there is no folder '\./nowhere'"),
    ],
)  # fmt: skip
def test_unusable_model_names_the_key(tmp_path: Path, model: ModelConfig, says: str):
    with pytest.raises(ModelError, match=says):
        prepare_dual_encoder(model, tmp_path / "model", texts=TEXTS, seed=0)
