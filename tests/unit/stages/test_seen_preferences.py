"""Real training processes on rows with images: TRL's losses against slow ones, resuming, reward models, fine-tuning."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForImageTextToText

from rlhf.config.algorithm import LoraConfig
from rlhf.config.schema import ModelConfig
from rlhf.config.trainer import DpoConfig, RewardModelConfig, SftConfig
from rlhf.data.row_order import training_order
from rlhf.data.scoring_models import scoring_class
from rlhf.data.vision_model import ImageProcessor, part_of
from rlhf.stages.dpo import run_dpo
from rlhf.stages.preference_rows import read_pairs
from rlhf.stages.reward_model import run_reward_model
from rlhf.stages.seen_batches import image_inputs
from rlhf.stages.sft import run_sft
from rlhf.stages.trained_rows import IMAGES
from tests.seen_pairs import seeing_renderer, seen_rows, source_of

pytestmark = pytest.mark.slow
MPO = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
SIZES = {"num_steps": 4, "batch_size": 4, "threads": 1, "max_length": 64}


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return seeing_renderer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return source_of(seen_rows(folder), folder / "rows.jsonl")


def curve(folder, kind):
    lines = [json.loads(line) for line in (folder / f"{kind}_metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


def weights(folder):
    return load_file(folder / "model.safetensors")


def answer_logprobs(model, processor, row, side):
    """Log-probabilities of an answer's tokens by a plain forward of one row."""
    ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
    shown = row[IMAGES]
    seen = image_inputs(processor, [shown], ids) if shown else {}
    logprobs = model(input_ids=ids, **seen).logits[0].log_softmax(-1)
    start = len(row["prompt_ids"])
    return logprobs[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]


def slow_loss(model, processor, rows, references, *, beta, losses):
    """The mean over pairs of weighted losses, pair by pair."""
    total = torch.zeros(())
    for row, (reference_chosen, reference_rejected) in zip(rows, references, strict=True):
        chosen = answer_logprobs(model, processor, row, "chosen")
        rejected = answer_logprobs(model, processor, row, "rejected")
        up, down = beta * (chosen.sum() - reference_chosen), beta * (rejected.sum() - reference_rejected)
        total = total + losses.get("sigmoid", 0) * -logsigmoid(up - down)
        total = total + losses.get("bco_pair", 0) * (-logsigmoid(up) - logsigmoid(-down))
        total = total + losses.get("sft", 0) * -chosen.mean()
    return total / len(rows)


@pytest.mark.parametrize("loss", ["sigmoid", MPO], ids=["dpo", "mpo"])
def test_losses_and_weights_are_those_of_slow_training_by_plain_forwards(renderer, source, tmp_path, loss):
    config = DpoConfig(source=source, loss=loss, beta=0.5, lr=1e-3, lr_schedule="constant", **SIZES)
    run_dpo(config, renderer=renderer, out_folder=tmp_path / "out", seed=3)

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(renderer.model_folder, dtype=torch.float32)
    processor = ImageProcessor(renderer.vision)
    rows = read_pairs(config.source, config, renderer=renderer, key="dpo.source").rows
    with torch.no_grad():
        references = [
            tuple(answer_logprobs(model, processor, row, side).sum() for side in ("chosen", "rejected"))
            for row in rows
        ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    order = training_order(torch.arange(len(rows)).numpy(), num_rows=16, seed=3)
    losses = {loss: 1.0} if isinstance(loss, str) else loss
    expected = []
    for start, end in pairwise(range(0, 17, 4)):
        batch = order[start:end].tolist()
        found = slow_loss(
            model,
            processor,
            [rows[i] for i in batch],
            [references[i] for i in batch],
            beta=0.5,
            losses=losses,
        )
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        expected.append(found.item())
    assert curve(tmp_path / "out", "dpo") == pytest.approx(expected, rel=2e-4)
    if loss == "sigmoid":
        assert expected[0] == pytest.approx(math.log(2), abs=1e-6)
    assert expected[-1] < expected[0]


def test_microbatches_leave_several_losses_unchanged(renderer, source, tmp_path):
    config = DpoConfig(source=source, loss=MPO, lr=1e-3, **SIZES)
    run_dpo(config, renderer=renderer, out_folder=tmp_path / "whole", seed=3)
    split = config.model_copy(update={"microbatch_size": 1})
    run_dpo(split, renderer=renderer, out_folder=tmp_path / "split", seed=3)
    assert curve(tmp_path / "split", "dpo") == pytest.approx(curve(tmp_path / "whole", "dpo"), rel=1e-4)
    for name, expected in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "split")[name], expected, atol=2e-5, rtol=1e-3)


class Killed(Exception):
    """Raised while the training process runs, which is then killed with SIGKILL."""


@pytest.mark.parametrize(
    "changes", [{"freeze": {"vision": True}}, {"lora": {"rank": 4}}], ids=["frozen", "lora"]
)
def test_killed_training_on_images_goes_on_and_ends_with_the_same_bits(renderer, source, tmp_path, changes):
    config = DpoConfig(source=source, heldout=source, loss=MPO, lr=1e-2, checkpoint_every=2, **SIZES)
    model = ModelConfig(path=renderer.model_folder, **changes)

    def run(name, on_progress=None):
        run_dpo(
            config,
            renderer=renderer,
            out_folder=tmp_path / name,
            seed=3,
            on_progress=on_progress,
            model=model,
        )

    def kill_at_3(line):
        if line["step"] == 3:
            raise Killed

    run("whole")
    with pytest.raises(Killed):
        run("cut", kill_at_3)
    steps = []
    run("cut", lambda line: steps.append(line["step"]))
    assert steps == [3, 4]
    found, expected = (tmp_path / name / "model.safetensors" for name in ("cut", "whole"))
    assert found.read_bytes() == expected.read_bytes()
    assert curve(tmp_path / "cut", "dpo") == curve(tmp_path / "whole", "dpo")
    start, end = weights(renderer_folder(renderer)), weights(tmp_path / "whole")
    changed = {part_of(name) for name in start if not torch.equal(start[name], end[name])}
    assert changed == ({"text"} if "lora" in changes else {"text", "projector"})
    processor = "preprocessor_config.json"
    assert (tmp_path / "whole" / processor).read_text() == (renderer_folder(renderer) / processor).read_text()


def renderer_folder(renderer):
    return Path(renderer.model_folder)


@pytest.mark.parametrize("changes", [{"microbatch_size": 1}, {"packing": True, "microbatch_size": 2}])
def test_fine_tuning_on_images_does_not_depend_on_how_rows_are_batched(renderer, source, tmp_path, changes):
    config = SftConfig(source=source, lr=1e-3, **SIZES)
    run_sft(config, renderer=renderer, out_folder=tmp_path / "whole", seed=3)
    run_sft(config.model_copy(update=changes), renderer=renderer, out_folder=tmp_path / "split", seed=3)
    found, expected = curve(tmp_path / "split", "sft"), curve(tmp_path / "whole", "sft")
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0]
    for name, values in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "split")[name], values, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_reward_model_that_sees_scores_as_it_was_trained(renderer, source, tmp_path, lora):
    config = RewardModelConfig(source=source, heldout=source, lr=1e-3 if lora is None else 1e-2, **SIZES)
    model = ModelConfig(path=renderer.model_folder, lora=lora)
    run_reward_model(config, renderer=renderer, out_folder=tmp_path, seed=0, model=model)
    found = json.loads((tmp_path / "reward_model.json").read_text())["metrics"]
    rows = read_pairs(config.source, config, renderer=renderer, key="reward_model.source").rows
    loaded = scoring_class(json.loads((tmp_path / "config.json").read_text())).from_pretrained(tmp_path)
    assert loaded.config.architectures == ["Qwen2VLForSequenceClassification"]
    processor = ImageProcessor(renderer.vision)
    ahead = 0
    for row in rows:
        scores = []
        for side in ("chosen", "rejected"):
            ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
            seen = image_inputs(processor, [row[IMAGES]], ids) if row[IMAGES] else {}
            scores.append(loaded(input_ids=ids, **seen).logits.item())
        ahead += scores[0] > scores[1]
    assert ahead / len(rows) == found["preference/accuracy_after"]
    assert found["trainer/loss_at_end"] < found["trainer/loss_at_start"]
