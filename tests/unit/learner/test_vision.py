"""Rows with images, packed, give what an unpacked model gives; however they are split."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from rlhf.batch import Batch
from rlhf.config.algorithm import CriticConfig, LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.config.vision import FreezeConfig
from rlhf.data.vision_model import ImageProcessor, find_vision, part_of
from rlhf.errors import LearnerError, ModelError
from rlhf.learner.fsdp import FsdpLearner, RankPlace
from rlhf.learner.model import build_model
from rlhf.learner.vision import part_sizes
from tests.tiny import picture, save_tiny_vision, tiny_config
from tests.unit.learner.ranks import Ranks, critic_gradients, gradients, plan, policy_gradient, share
from tests.unit.learner.test_fsdp import relative_gap
from tests.vision_rows import prompts, seen_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vision(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def batch(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    return seen_batch(folder, prompts(tmp_path_factory.mktemp("images")))


def of(folder: Path, **changes) -> ModelConfig:
    return ModelConfig(path=str(folder), dtype="float32", **changes)


def plain(folder: Path, batch: Batch) -> torch.Tensor:
    """[N] by one forward of transformers for each row, image tokens banned."""
    vision = find_vision(folder)
    assert vision is not None
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = ImageProcessor(vision)
    found = []
    for row in range(batch.num_rows):
        own = batch.select_rows(torch.tensor([row]))
        ids = own.tokens[None]
        seen = {}
        if own.image_ids is not None and (own.image_ids >= 0).any():
            places = (own.image_ids >= 0) & (torch.roll(own.image_ids, 1) != own.image_ids)
            pixels = processor.of_all([own.images[i] for i in own.image_ids[places].tolist()])
            seen = {
                "pixel_values": torch.cat([p.values for p in pixels]),
                "image_grid_thw": torch.tensor([p.grid for p in pixels]),
                "mm_token_type_ids": (ids == vision.image_id).int(),
            }
        with torch.no_grad():
            logits = model(ids, attention_mask=torch.ones_like(ids), **seen).logits[0, :-1]
        logits[:, list(batch.banned)] = -torch.inf
        log_p = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        flat = torch.cat([log_p.new_zeros(1), log_p])
        found.append(torch.where(own.loss_mask, flat, 0.0))
    return torch.cat(found)


def test_packed_rows_equal_transformers_row_by_row(folder: Path, batch: Batch, place: RankPlace) -> None:
    assert len(set(batch.origins().tolist())) < batch.num_tokens  # beginnings are shared
    (found,) = FsdpLearner(plan(of(folder)), place).logprobs([batch])
    torch.testing.assert_close(found, plain(folder, batch), atol=2e-5, rtol=0)


def test_logprobs_do_not_depend_on_the_order_of_rows(folder: Path, batch: Batch, place: RankPlace) -> None:
    order = torch.randperm(batch.num_rows, generator=torch.Generator().manual_seed(1))
    learner = FsdpLearner(plan(of(folder)), place)
    (found,) = learner.logprobs([batch])
    (moved,) = learner.logprobs([batch.select_rows(order)])
    torch.testing.assert_close(moved, found[batch.token_index(order)], atol=1e-5, rtol=0)


def test_an_image_changes_what_follows_it(
    folder: Path, batch: Batch, place: RankPlace, tmp_path: Path
) -> None:
    others = tuple(picture(tmp_path, 10 + i, size) for i, size in enumerate([(32, 32), (16, 64), (48, 32)]))
    learner = FsdpLearner(plan(of(folder)), place)
    found, changed = learner.logprobs([batch, replace(batch, images=others)])
    gap = (found - changed).abs()
    rows_with = torch.bincount(batch.segment_ids[batch.image_ids >= 0], minlength=batch.num_rows) > 0
    per_row = torch.zeros(batch.num_rows).scatter_reduce(0, batch.segment_ids, gap, "amax")
    assert (per_row[rows_with] > 1e-3).all()
    assert (per_row[~rows_with] < 1e-6).all()


@pytest.mark.parametrize("budget", [20, 60])
@pytest.mark.parametrize("frozen", [(), ("vision",), ("vision", "projector")])
def test_gradient_does_not_depend_on_microbatches_or_ranks(
    folder: Path, batch: Batch, place: RankPlace, two_ranks: Ranks, budget: int, frozen: tuple[str, ...]
) -> None:
    what = plan(of(folder, freeze=FreezeConfig(**dict.fromkeys(frozen, True))))
    one = gradients(place, what, batch, 10_000)
    assert {part_of(name) for name in one} == {"vision", "projector", "text"} - set(frozen)
    for two in two_ranks.run(gradients, what, batch, budget):
        assert relative_gap(two, one) < 1e-5


def test_gradient_reaches_the_tower_from_every_rank(
    folder: Path, place: RankPlace, two_ranks: Ranks, tmp_path: Path
) -> None:
    asked = prompts(tmp_path)
    batch = seen_batch(folder, [asked[1], asked[3]], size=1)  # rank 1 has no image at all
    assert [
        m[0].image_ids is not None and bool((m[0].image_ids >= 0).any()) for m in share(batch, 2, 999)
    ] == [True, False]
    one = gradients(place, plan(of(folder)), batch, 10_000)
    assert any(part_of(name) == "vision" and bool(g.abs().sum() > 0) for name, g in one.items())
    for two in two_ranks.run(gradients, plan(of(folder)), batch, 10_000):
        assert relative_gap(two, one) < 1e-5


def test_critic_sees_images(folder: Path, batch: Batch, place: RankPlace, two_ranks: Ranks) -> None:
    what = replace(plan(of(folder)), critic=CriticConfig())
    one = critic_gradients(place, what, batch, 10_000)
    assert any(part_of(name) == "vision" and bool(g.abs().sum() > 0) for name, g in one.items())
    for two in two_ranks.run(critic_gradients, what, batch, 40):
        assert relative_gap(two, one) < 1e-4


def test_frozen_parts_stay_and_have_no_optimizer_state(folder: Path, batch: Batch, place: RankPlace) -> None:
    learner = FsdpLearner(plan(of(folder, freeze=FreezeConfig(vision=True, text=True))), place)
    before = {name: t.clone() for name, t in learner.weights()}
    learner.update([[batch]], policy_gradient)
    changed = {name for name, t in learner.weights() if not torch.equal(t, before[name])}
    assert changed
    assert {part_of(name) for name in changed} == {"projector"}
    held = {name.split(".", 2)[2] for name in learner.policy.state() if name.startswith("optimizer.")}
    assert {part_of(name) for name in held} == {"projector"}


def test_adapters_are_on_the_language_model_alone(folder: Path) -> None:
    network = build_model(of(folder, lora=LoraConfig(rank=4)), 0, on_meta=False)
    sizes = part_sizes(dict(network.named_parameters()))
    assert sizes["vision"][0] == sizes["projector"][0] == 0 < sizes["text"][0]


def test_adapters_reach_the_tower_when_they_name_it(folder: Path) -> None:
    lora = LoraConfig(rank=4, targets=("visual.blocks.0.attn.qkv", "q_proj"))
    sizes = part_sizes(dict(build_model(of(folder, lora=lora), 0, on_meta=False).named_parameters()))
    assert sizes["vision"][0] > 0 < sizes["text"][0]


def test_what_would_train_nothing_is_refused(folder: Path) -> None:
    lora = LoraConfig(rank=4, targets=("visual.blocks.0.attn.qkv",))
    with pytest.raises(ModelError, match=r"model\.freeze names vision, which is all that would be trained"):
        build_model(of(folder, lora=lora, freeze=FreezeConfig(vision=True)), 0, on_meta=False)
    text = ModelConfig(config=tiny_config(), dtype="float32", freeze=FreezeConfig(text=True))
    with pytest.raises(ModelError, match=r"model\.freeze names text, which is all"):
        build_model(text, 0, on_meta=False)


def test_a_part_that_is_not_there_cannot_be_frozen() -> None:
    text = ModelConfig(config=tiny_config(), dtype="float32", freeze=FreezeConfig(vision=True))
    with pytest.raises(ModelError, match=r"model\.freeze names vision, which Qwen3ForCausalLM does not have"):
        build_model(text, 0, on_meta=False)


def test_an_image_of_another_size_is_refused(
    folder: Path, batch: Batch, place: RankPlace, tmp_path: Path
) -> None:
    changed = (picture(tmp_path, 5, (64, 64)), *batch.images[1:])
    with pytest.raises(LearnerError, match=r"has 4 tokens in its row, but its pixels ask for 16"):
        FsdpLearner(plan(of(folder)), place).logprobs([replace(batch, images=changed)])


def test_exported_model_gives_the_same_logprobs(
    folder: Path, batch: Batch, place: RankPlace, tmp_path: Path
) -> None:
    learner = FsdpLearner(plan(of(folder)), place)
    learner.update([[batch]], policy_gradient)
    (found,) = learner.logprobs([batch])
    learner.export(str(tmp_path / "model"))
    assert (tmp_path / "model" / "preprocessor_config.json").is_file()
    torch.testing.assert_close(plain(tmp_path / "model", batch), found, atol=2e-5, rtol=0)
