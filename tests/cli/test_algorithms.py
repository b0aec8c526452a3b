"""`rlhf train --dry-run` with one algorithm after another: the whole bundle, or one message."""

from pathlib import Path

import pytest

from rlhf.config.loading import load_recipe
from rlhf.config.presets import PRESETS
from tests.cli.command import rlhf, write_recipe
from tests.cli.test_bad_inputs import assert_one_error
from tests.tiny import save_tiny

QUICKSTART = "recipes/cpu/quickstart.yaml"
SHOWN = {
    "deepseekmath_grpo": ("0.04 x k3 in the loss", "the model before training"),
    "r1_zero": ("takes its place every 400 steps",),
    "deepseek_v3_2": ("opsm_delta 0.1", "no sampling mask to keep", "no routing to keep"),
    "dapo": ("clip_high 0.28", "overlong_cache 8", "groups of equal rewards are discarded"),
    "dr_grpo": ("seq_mean_token_sum_norm (C 40)",),
    "gspo": ("clip_high 0.0004",),
    "rloo": ("0.03 x k1 in the reward",),
    "ppo": ("gae (gamma 1.0", "lr 1e-05 constant", "value loss"),
    "vapo": ("length_alpha 0.05", "positive_nll_coef 0.1", "5 of 30 steps on the critic alone"),
}


def plan_of(*overrides: str) -> str:
    """The printed plan, its table's lines joined."""
    done = rlhf("train", QUICKSTART, "--dry-run", *overrides)
    assert done.returncode == 0, done.stderr
    cells = [line.strip("│ ").split("│") for line in done.stderr.splitlines() if line.startswith("│")]
    return " ".join(" ".join(cell.split()) for row in cells for cell in row[-1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_dry_run_prints_the_bundle_of_a_preset(name):
    plan = plan_of(f"algorithm.name={name}", *(["critic.pretrain_steps=5"] if name == "vapo" else []))
    assert name in plan
    assert [text for text in SHOWN.get(name, ()) if text not in plan] == []


def test_every_key_that_a_preset_sets_can_be_set_otherwise():
    other = {
        "advantage_kwargs": None,
        "advantages": "reinforce",
        "aggregation": "token_sum",
        "clip_high": 0.3,
        "kl_coef": 0.5,
        "kl_estimator": "k2",
        "kl_in": None,
        "kl_ratio_from": "learner",
        "opsm_delta": 0.2,
        "policy": "sapo",
        "positive_nll_coef": 0.2,
        "reference_reset_every": 7,
        "shaping": None,
        "whiten": "false",
    }
    for name, sections in PRESETS.items():
        for key in sections.get("algorithm", {}):
            if (value := other[key]) is None:
                continue
            found = load_recipe(QUICKSTART, [f"algorithm.name={name}", f"algorithm.{key}={value}"])
            assert str(dict(found.algorithm)[key]).lower() == str(value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ("algorithm.name=vapo",),
            ("critic.pretrain_steps is 50", "schedule.num_steps is 30", "critic.pretrain_steps=6"),
        ),
        (
            ("algorithm.advantages=pass_at_k", "algorithm.advantage_kwargs.k=two"),
            ("algorithm.advantage_kwargs.k: found 'two'", "expected a valid integer"),
        ),
        (("critic.lr=1e-3",), ("critic.lr is 0.001", "which has no critic", "algorithm.advantages: gae")),
        (("sampling.keep_routing=true",), ("sampling.keep_routing is true", "no experts", "Set sampling")),
    ],
    ids=["vapo", "type", "critic", "experts"],
)
def test_what_would_have_no_effect_is_refused_by_the_dry_run(overrides, says):
    assert_one_error(rlhf("train", QUICKSTART, "--dry-run", *overrides), ("ConfigError", *says))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("./gone", "algorithm.reference: there is no folder './gone'"),
        ("{d}/other", "of our tokens another id or none"),
    ],
)
def test_a_reference_that_cannot_be_one_is_named_before_anything_starts(tmp_path: Path, reference, says):
    recipe = write_recipe(tmp_path)
    save_tiny(tmp_path / "model")
    save_tiny(tmp_path / "other")
    tokenizer = tmp_path / "other" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"7":', '"\u00e9":'))
    where = reference.format(d=tmp_path)
    done = rlhf("train", recipe, "algorithm.kl_coef=0.1", f"algorithm.reference={where}")
    assert_one_error(done, ("ModelError", says))
    assert "starting" not in done.stderr
