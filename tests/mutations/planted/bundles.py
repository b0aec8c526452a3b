"""From the names of a recipe to functions and their settings."""

from functools import partial

from tests.mutations.mutation import Mutation

_TESTS = ("tests/unit/algorithms/test_catalogue.py", "tests/unit/algorithms/test_own_functions.py")
catalogue = partial(Mutation, file="rlhf/algorithms/catalogue.py", tests=_TESTS)
preset = partial(Mutation, file="rlhf/config/presets.py", tests=_TESTS)

RESOLUTION = (
    catalogue(
        "unscorable rows are weighed",
        "kept = ~torch.isnan(minibatch.rewards)",
        "kept = torch.ones_like(minibatch.truncated)",
    ),
    catalogue("truncated rows are kept", "kept = kept & ~minibatch.truncated", "kept = kept & kept"),
    catalogue(
        "only truncated rows are kept",
        "kept = kept & ~minibatch.truncated",
        "kept = kept & minibatch.truncated",
    ),
    catalogue("truncated rows are always left out", "if self.mask_truncated:", "if True:"),
    catalogue("old = current over several updates", "return num_updates > 1 or", "return num_updates > 2 or"),
    catalogue(
        "old = current under a KL in the reward",
        "num_updates > 1 or self.kl_in_reward is not None or",
        "num_updates > 1 or",
    ),
    catalogue(
        "old = current under distillation",
        'self.kl_in_reward is not None or "old_logprobs" in self.inputs\n',
        "self.kl_in_reward is not None\n",
    ),
    catalogue(
        "the reference is never needed",
        'return self.kl_coef > 0 or ("teacher_logprobs" in self.inputs and not self.teachers)',
        "return False",
    ),
    catalogue(
        "the reference is not needed as a teacher",
        'return self.kl_coef > 0 or ("teacher_logprobs" in self.inputs and not self.teachers)',
        "return self.kl_coef > 0",
    ),
    catalogue(
        "a reference is held beside several teachers",
        '("teacher_logprobs" in self.inputs and not self.teachers)',
        '"teacher_logprobs" in self.inputs',
    ),
    catalogue(
        "no KL beside several teachers",
        'self.kl_coef > 0 or ("teacher_logprobs" in self.inputs and not self.teachers)',
        '(self.kl_coef > 0 or "teacher_logprobs" in self.inputs) and not self.teachers',
    ),
    catalogue("the teachers are forgotten", "teachers=tuple(config.teachers)", "teachers=()"),
    catalogue("entropy is never needed", "return self.loss.entropy_coef != 0", "return False"),
    catalogue("shaping is forgotten", "batch = self.shaping(batch)", "self.shaping(batch)"),
    catalogue(
        "the KL penalty is forgotten",
        "token_rewards=penalty if of_turns is None else of_turns + penalty",
        "token_rewards=of_turns",
    ),
    catalogue(
        "the KL penalty in place of the turns' rewards",
        "penalty if of_turns is None else of_turns + penalty",
        "penalty",
    ),
    catalogue(
        "the KL penalty in place of the advantages' batch",
        "kl_coef=self.kl_in_reward, estimator=self.loss.kl_estimator",
        "kl_coef=self.kl_in_reward",
    ),
    catalogue(
        "the KL penalty by the loss's coefficient",
        "kl_token_rewards(batch, kl_coef=self.kl_in_reward,",
        "kl_token_rewards(batch, kl_coef=self.loss.kl_coef,",
    ),
    catalogue(
        "whitening is forgotten", "advantages = whiten(advantages, batch)", "whiten(advantages, batch)"
    ),
    catalogue("whitening always", "if self.whiten:", "if True:"),
    catalogue(
        "returns from the unshaped rewards",
        "returns=None if self.returns is None else self.returns(batch)",
        "returns=None if self.returns is None else self.returns(replace(batch, token_rewards=None))",
    ),
    catalogue(
        "the aggregation's constant is forgotten",
        "self.aggregation, normaliser=self.loss_normaliser, kept",
        "self.aggregation, normaliser=1.0, kept",
    ),
    catalogue(
        "the constant is half the maximum",
        "float(recipe.sampling.max_tokens)",
        "float(recipe.sampling.max_tokens // 2)",
    ),
    catalogue("the recipe's constant is ignored", "config.loss_normaliser or float(", "float("),
    catalogue(
        "the seed of the selection is forgotten",
        "return self.loss.prepare(replace(minibatch, loss_weights=weights), seed=seed)",
        "return self.loss.prepare(replace(minibatch, loss_weights=weights))",
    ),
    catalogue(
        "a steered coefficient is ignored in the reward",
        "return replace(self, kl_in_reward=coef)",
        "return self",
    ),
    catalogue(
        "a steered coefficient is ignored in the loss",
        "loss=replace(self.loss, kl_coef=coef)",
        "loss=self.loss",
    ),
    catalogue(
        "a steered coefficient acts in both places",
        "return replace(self, kl_in_reward=coef)",
        "return replace(self, kl_in_reward=coef, loss=replace(self.loss, kl_coef=coef))",
    ),
    catalogue(
        "KL in the reward and in the loss",
        "kl_coef=config.kl_coef if in_loss else 0.0",
        "kl_coef=config.kl_coef",
    ),
    catalogue(
        "KL in the reward is lost",
        'kl_in_reward=config.kl_coef if config.kl_in == "reward" and config.kl_coef else None',
        "kl_in_reward=None",
    ),
    catalogue("k3_unbiased in the reward", '("k3_unbiased" if in_loss else "k1")', '"k3_unbiased"'),
    catalogue(
        "k1 for the biased k3 in the loss",
        '("k3_unbiased" if in_loss else "k1")',
        '("k3" if in_loss else "k1")',
    ),
    catalogue(
        "estimator settings are forgotten",
        "advantages=partial(estimator, **settings)",
        "advantages=partial(estimator)",
    ),
    catalogue("gdpo forgets the rewards' weights", 'if config.advantages == "gdpo":', "if False:"),
    catalogue(
        "gdpo overrules the weights it is given",
        'settings.setdefault("weights", tuple(reward.weight for reward in recipe.task.rewards))',
        'settings["weights"] = tuple(reward.weight for reward in recipe.task.rewards)',
    ),
    catalogue(
        "the returns' lambda is that of the estimator",
        "partial(returns, lam=recipe.critic.lam, **shared)",
        'partial(returns, lam=settings.get("lam", 1.0), **shared)',
    ),
    catalogue(
        "the returns forget gamma and the bootstrap",
        "partial(returns, lam=recipe.critic.lam, **shared)",
        "partial(returns, lam=recipe.critic.lam)",
    ),
    catalogue("the value clip is forgotten", "ValueLoss(clip=recipe.critic.value_clip)", "ValueLoss()"),
    catalogue(
        "clips exchanged",
        "clip_low=config.clip_low,\n            clip_high=config.clip_high",
        "clip_low=config.clip_high,\n            clip_high=config.clip_low",
    ),
    catalogue("the dual clip is forgotten", "dual_clip=config.dual_clip,\n", ""),
    catalogue(
        "the policy's settings are forgotten", "policy_kwargs=tuple(config.policy_kwargs.items()),\n", ""
    ),
    catalogue("the old policy is always the learner's", "old_from=config.old_from,\n", ""),
    catalogue("the log-ratio's limit is forgotten", "log_ratio_limit=config.log_ratio_limit,\n", ""),
    catalogue("the correction's floor is forgotten", "correction_floor=config.correction_floor,\n", ""),
    catalogue("the correction's cap is forgotten", "correction_cap=config.correction_cap,\n", ""),
    catalogue("the correction is forgotten", 'correction=cast("Correction", config.correction),\n', ""),
    catalogue("the sequence mask is forgotten", "opsm_delta=config.opsm_delta,\n", ""),
    catalogue("the KL's ratio is always the learner's", "kl_ratio_from=config.kl_ratio_from,\n", ""),
    catalogue("the entropy bonus is forgotten", "entropy_coef=config.entropy_coef,\n", ""),
    catalogue("the positive NLL is forgotten", "positive_nll_coef=config.positive_nll_coef,\n", ""),
    catalogue("whitening is not read from the recipe", "whiten=config.whiten,\n", ""),
    catalogue("mask_truncated is not read from the recipe", "mask_truncated=config.mask_truncated,\n", ""),
    catalogue("the overlong cache is the maximum", "max(round(share * max_tokens), 1)", "max_tokens"),
    catalogue(
        "the overlong cache rounds down",
        "max(round(share * max_tokens), 1)",
        "max(int(share * max_tokens), 1)",
    ),
    catalogue("cosine settings are forgotten", "CosineReward(**cosine.model_dump())", "CosineReward()"),
    catalogue(
        "shaping settings are forgotten",
        "            **given,\n        )\n    except",
        "        )\n    except",
    ),
)

PRESETS = (
    preset(
        "deepseekmath: another KL",
        '"deepseekmath_grpo": {"algorithm": {"kl_coef": 0.04',
        '"deepseekmath_grpo": {"algorithm": {"kl_coef": 0.4',
    ),
    preset(
        "r1_zero: another KL",
        '"r1_zero": {"algorithm": {"kl_coef": 0.001',
        '"r1_zero": {"algorithm": {"kl_coef": 0.01',
    ),
    preset(
        "r1_zero: unbiased KL",
        '"kl_coef": 0.001, "kl_estimator": "k3", "reference',
        '"kl_coef": 0.001, "kl_estimator": "k3_unbiased", "reference',
    ),
    preset("r1_zero: the reference stays", '"reference_reset_every": 400', '"reference_reset_every": 0'),
    preset(
        "v3.2: with a std",
        '"advantages": "dr_grpo",\n            "kl_coef"',
        '"advantages": "grpo",\n            "kl_coef"',
    ),
    preset("v3.2: KL ratio of the learner", '"kl_ratio_from": "rollout",\n', ""),
    preset("v3.2: no sequence mask", '"opsm_delta": 0.1,\n', ""),
    preset("v3.2: biased KL", '"kl_estimator": "k3_unbiased",', '"kl_estimator": "k3",'),
    preset(
        "v3.2: sampling mask dropped",
        '{"keep_sampling_mask": True, "keep_routing": "auto"}',
        '{"keep_routing": "auto"}',
    ),
    preset(
        "v3.2: routing dropped",
        '{"keep_sampling_mask": True, "keep_routing": "auto"}',
        '{"keep_sampling_mask": True}',
    ),
    preset(
        "dapo: symmetric clip",
        '"clip_high": 0.28,\n            "aggregation": "token_mean",\n            "shaping"',
        '"aggregation": "token_mean",\n            "shaping"',
    ),
    preset("dapo: sequence mean", '"aggregation": "token_mean",\n            "shaping"', '"shaping"'),
    preset("dapo: no overlong penalty", '            "shaping": {"overlong_share": 0.2},\n', ""),
    preset("dapo: a longer overlong cache", '"overlong_share": 0.2', '"overlong_share": 0.25'),
    preset(
        "dapo: no dynamic sampling",
        '"schedule": {"drop_zero_variance": True}',
        '"schedule": {"drop_zero_variance": False}',
    ),
    preset(
        "dr_grpo: with a std",
        '{"advantages": "dr_grpo", "aggregation"',
        '{"advantages": "grpo", "aggregation"',
    ),
    preset(
        "dr_grpo: length bias",
        '"aggregation": "seq_mean_token_sum_norm"',
        '"aggregation": "seq_mean_token_mean"',
    ),
    preset("gspo: token by token", '"policy": "gspo"', '"policy": "gspo_token"'),
    preset("cispo: sequence mean", '"policy": "cispo", "aggregation": "token_mean"', '"policy": "cispo"'),
    preset("rloo: clipped", '            "policy": "reinforce",\n', ""),
    preset(
        "rloo: token means", '"aggregation": "seq_mean_token_sum",', '"aggregation": "seq_mean_token_mean",'
    ),
    preset("rloo: KL in the loss", '"kl_coef": 0.03,\n            "kl_in": "reward",', '"kl_coef": 0.03,'),
    preset(
        "reinforce_pp: not whitened",
        '"advantages": "reinforce_pp",\n            "whiten": True,',
        '"advantages": "reinforce_pp",',
    ),
    preset(
        "reinforce_pp: with a baseline",
        '"advantages": "reinforce_pp",',
        '"advantages": "reinforce_pp_baseline",',
    ),
    preset(
        "ppo: not whitened",
        '"advantages": "gae",\n'
        '            "whiten": True,\n'
        '            "aggregation": "token_mean",\n'
        '            "kl_coef"',
        '"advantages": "gae",\n            "aggregation": "token_mean",\n            "kl_coef"',
    ),
    preset("vapo: another length alpha", '{"length_alpha": 0.05}', '{"length_alpha": 0.5}'),
    preset(
        "vapo: no length-adaptive lambda", '            "advantage_kwargs": {"length_alpha": 0.05},\n', ""
    ),
    preset(
        "vapo: not whitened", '"length_alpha": 0.05},\n            "whiten": True,', '"length_alpha": 0.05},'
    ),
    preset(
        "vapo: symmetric clip",
        '"clip_high": 0.28,\n            "aggregation": "token_mean",\n            "positive',
        '"aggregation": "token_mean",\n            "positive',
    ),
    preset("vapo: no positive NLL", '"positive_nll_coef": 0.1,\n', ""),
    preset("vapo: coupled lambda", '"critic": {"lam": 1.0,', '"critic": {"lam": 0.95,'),
    preset("vapo: no critic warm-up", '"pretrain_steps": 50', '"pretrain_steps": 0'),
    preset("settings of another choice stay", "if algorithm.get(choice, ours) != ours:", "if False:"),
    preset("the preset's settings always go", "if algorithm.get(choice, ours) != ours:", "if True:"),
    preset("the preset wins over the recipe", "filled = {**below, **values}", "filled = {**values, **below}"),
    preset(
        "a section of the recipe replaces the preset's",
        "            filled[key] = lay_over(under, over)\n",
        "            filled[key] = over\n",
    ),
    preset("other sections are forgotten", "return lay_over(below, values)", "return dict(values)"),
)

BUGS = (*RESOLUTION, *PRESETS)
