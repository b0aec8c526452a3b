"""Every key of a recipe, with its default and its meaning. A recipe holds only what differs from here.

Units are in the names: `_s` seconds, `num_` counts, `max_tokens` tokens, staleness in weight versions.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from rlhf.config.algorithm import AlgorithmConfig, CriticConfig, LoraConfig
from rlhf.config.image_codes import ImageCodesConfig, image_codes_problem
from rlhf.config.presets import lay_over_preset
from rlhf.config.rewards import uncovered_step
from rlhf.config.sandbox import SandboxConfig
from rlhf.config.section import Count, Fraction, NonNegative, Positive, Section
from rlhf.config.services import ServiceConfig, unknown_service
from rlhf.config.task import TaskConfig
from rlhf.config.trainer import SftConfig as SftConfig
from rlhf.config.vision import FreezeConfig, ImageProcessorConfig


class ModelConfig(Section):
    """What is trained."""

    path: str | None = None
    """A Hugging Face folder or hub name."""
    config: dict[str, Any] | None = None
    """A Hugging Face config (with `model_type`) to initialise at random instead of loading."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; default: the model's. `characters` makes one of single characters,
    `characters+tags` one that also has <think>, </think>, <answer> and </answer>, `characters+codes` one that has
    <boi> (id 99) and the image codes <c0> to <c15> (from 100)."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute type of learner and engine. Master weights are always float32, optimizer state as
    `learner.optimizer_state` has it."""
    lora: LoraConfig | None = None
    """Adapters; in a model that sees images, on the language model unless `targets` name modules of `visual`."""
    freeze: FreezeConfig = FreezeConfig()
    image_processor: ImageProcessorConfig | None = None
    """With `config` of a model that sees images: how images are resized."""
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _suits_its_source(self) -> "ModelConfig":
        if self.image_processor is not None and self.config is None:
            raise ValueError(
                "model.image_processor goes with model.config; a folder in model.path has its own "
                "(preprocessor_config.json). Remove it, or change that file."
            )
        if self.lora is not None and self.freeze.text:
            raise ValueError(
                "model.lora trains adapters of the language model and model.freeze.text is true: nothing would be "
                "trained. Remove one of the two."
            )
        return self

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if (self.path is None) == (self.config is None):
            raise ValueError(
                "model: give exactly one of model.path (load) and model.config (random initialisation)"
            )
        return self


class SamplingConfig(Section):
    """How training trajectories are drawn."""

    max_prompt_tokens: PositiveInt = 512
    """A longer prompt is refused at load (counted, named)."""
    max_tokens: PositiveInt = 1024
    """Of one answer; in an environment, of one turn."""
    temperature: Positive = 1.0
    temperature_points: tuple[tuple[Count, Positive], ...] = ()
    """[step, temperature] pairs in the order of their steps, in place of `temperature`: linear between two
    points, constant outside them. [[999, 1.0], [1000, 0.7]] is a jump."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count = 0
    """0: off."""
    keep_routing: bool | Literal["auto"] = False
    """Record the experts that the engine chose for every token and replay them in the learner.
    auto: where the model is a mixture of experts."""
    keep_sampling_mask: bool = False
    """Compare log-probabilities over the tokens that top_p and top_k left, as recorded at sampling."""
    kept_limit: PositiveInt = 256
    """Largest such set that is recorded; a token sampled from a larger one is left out of the loss."""
    image_codes: ImageCodesConfig | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> "SamplingConfig":
        steps = [step for step, _ in self.temperature_points]
        if steps != sorted(set(steps)):
            raise ValueError(
                f"sampling.temperature_points has steps {steps}: put them in rising order, each step once."
            )
        if steps and self.temperature != 1:
            raise ValueError(
                f"sampling.temperature is {self.temperature} and sampling.temperature_points is given, which stands "
                "in its place. Remove one of the two."
            )
        if self.kept_limit != 256 and not self.keep_sampling_mask:
            raise ValueError(
                f"sampling.kept_limit is {self.kept_limit} but sampling.keep_sampling_mask is false: nothing is "
                "kept. Set keep_sampling_mask: true, or remove the first."
            )
        return self


class ScheduleConfig(Section):
    """How much, and how far generation may run ahead."""

    num_steps: PositiveInt = 100
    prompts_per_step: PositiveInt = 32
    samples_per_prompt: PositiveInt = 8
    minibatches: PositiveInt = 1
    """Optimizer steps per pass over the batch of a step."""
    inner_epochs: PositiveInt = 1
    """Passes over the batch of a step."""
    max_staleness: Count = 0
    """0 synchronous, 1 one-step-off, k asynchronous: no token is trained more than k weight versions late."""
    drop_zero_variance: bool = False
    """Discard groups whose rewards are all equal and roll out another prompt (DAPO's dynamic sampling)."""
    max_discarded: Fraction = 0.9
    """Stop when a larger share of the last 10 x prompts_per_step groups was discarded."""


class LearnerConfig(Section):
    """The FSDP2 ranks and the optimizer."""

    num_ranks: PositiveInt = 1
    lr: Positive = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    optimizer_state: Literal["float32", "fp8"] = "float32"
    """How AdamW's moments are kept (the critic's too). fp8: 8 and 16 bits with scales (docs/low_precision.md)."""
    max_grad_norm: Positive | None = 1.0
    warmup_steps: Count = 0
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    min_lr_ratio: Fraction = 0.0
    """Final learning rate as a share of `lr` (linear, cosine)."""
    microbatch_tokens: PositiveInt = 8192
    """Most tokens a rank holds in one forward pass; a longer single row is refused at load."""
    logprob_chunk: PositiveInt = 2048
    """Tokens whose logits exist at one time."""
    activation_checkpointing: bool = False
    threads: PositiveInt = 1
    """CPU threads per rank."""

    @model_validator(mode="after")
    def _moments_can_fade(self) -> "LearnerConfig":
        for beta, most, bits in zip(self.betas, (0.94, 0.9995), (3, 10), strict=True):
            if self.optimizer_state == "fp8" and beta > most:
                raise ValueError(
                    f"learner.betas is {list(self.betas)} and learner.optimizer_state is fp8: times {beta}, a moment "
                    f"of {bits} bits behind the point rounds back to what it was and never fades. Expected at most "
                    f"0.94 and 0.9995. Lower {beta}, or set optimizer_state: float32."
                )
        return self


class EngineConfig(Section):
    """The rollout engines."""

    kind: Literal["auto", "vllm", "hf"] = "auto"
    """auto: vllm where it is installed, else hf (one line says so)."""
    num_engines: PositiveInt = 1
    tensor_parallel: PositiveInt = 1
    max_sequences: PositiveInt = 256
    """Sequences decoded at the same time in one engine."""
    kv_cache_mb: PositiveInt | None = None
    """KV cache of one engine; default on a GPU: what `gpu_memory_fraction` leaves, on a CPU: 512."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """auto: the model's. fp8: half of that (vLLM, in bfloat16)."""
    quantization: Literal["none", "fp8"] = "none"
    """fp8: weights of linear layers, and what enters them, in 8 bits (docs/low_precision.md)."""
    gpu_memory_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.85
    compile: bool = False
    """False: vLLM's eager mode."""
    threads: PositiveInt = 1
    """CPU threads per engine."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of vLLM's AsyncEngineArgs."""

    @property
    def narrow_keys(self) -> dict[str, str]:
        """The keys that make the engine compute in 8 bits, and what each is without."""
        off = {"quantization": "none", "kv_cache_dtype": "auto"}
        values = dict(self)
        return {key: value for key, value in off.items() if values[key] != value}


class SyncConfig(Section):
    """How weights reach the engines."""

    kind: Literal["auto", "cpu", "nccl", "ipc", "disk"] = "auto"
    """auto: cpu without a GPU, ipc when colocated, else nccl."""
    probe_every: PositiveInt = 1
    """Verify every n-th sync by log-probabilities (the first always)."""
    tolerance: Positive | None = None
    """Largest log-probability gap of a good sync; default 1e-3 in float32, 0.3 in bfloat16, 1 with an
    engine in FP8."""


class PlacementConfig(Section):
    """Where things run."""

    kind: Literal["split", "colocated"] = "split"
    """split: learner and engines side by side. colocated: they take turns on the same devices or cores."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: str | None = None
    """A running Ray cluster ('auto' or host:port); default: start a local one."""
    num_cpus: PositiveInt | None = None
    """Cores of a local Ray; default: what the process may use."""


class EvalConfig(Section):
    """Evaluation on `task.heldout`."""

    every: Count = 10
    """Steps between evaluations (also before the first and after the last step); 0: never."""
    num_prompts: PositiveInt = 256
    num_samples: PositiveInt = 1
    temperature: NonNegative = 0.0
    max_tokens: PositiveInt | None = None
    """Default: sampling.max_tokens."""


class CheckpointConfig(Section):
    """What a crash costs."""

    every: Count = 50
    """Steps between checkpoints (always one at the end); 0: only at the end."""
    keep: PositiveInt = 2
    """Checkpoints kept, newest first."""
    export: bool = True
    """Write a Hugging Face folder at the end."""


class TelemetryConfig(Section):
    """What is written down."""

    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Beside metrics.jsonl, which is always written."""
    project: str = "rlhf"
    """Project name for trackers."""
    samples_per_step: Count = 16
    """Trajectories per step kept for the report."""
    live: bool = True
    """Draw a live view when the terminal can show one."""


class TimeoutConfig(Section):
    """Deadlines of the waits across processes, in seconds."""

    start_s: Positive = 600.0
    """Start of an actor (loading a large model takes minutes)."""
    generate_s: Positive = 1800.0
    """One group, from submission to its last token."""
    update_s: Positive = 1800.0
    """One learner call."""
    sync_s: Positive = 300.0
    """One weight transfer with its probe."""


def longest_row(task: TaskConfig, sampling: SamplingConfig) -> int:
    """Tokens that a row of the task, sampled so, has at most."""
    limits = [environment.limits.max_tokens for environment in task.environments.values()]
    if len(limits) == len(task.parts):
        return max(limits)
    return max(sampling.max_prompt_tokens + sampling.max_tokens, *limits, 0)


class Recipe(Section):
    """A whole run."""

    name: str
    seed: int = 0
    run_dir: str | None = None
    """Default: runs/<name>."""
    model: ModelConfig
    sft: SftConfig | None = None
    """A cold start before RL, through TRL in a process of its own, of every weight: `model.lora` is of the RL."""
    task: TaskConfig
    services: dict[str, ServiceConfig] = Field(default_factory=dict)
    """Models that rewards ask, as `service://NAME` in their kwargs; each starts with the run if one names it."""
    sandbox: SandboxConfig = SandboxConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    sampling: SamplingConfig = SamplingConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    learner: LearnerConfig = LearnerConfig()
    critic: CriticConfig = CriticConfig()
    engine: EngineConfig = EngineConfig()
    sync: SyncConfig = SyncConfig()
    placement: PlacementConfig = PlacementConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    timeouts: TimeoutConfig = TimeoutConfig()

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        return lay_over_preset(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _combinations(self) -> "Recipe":
        if self.placement.kind == "colocated" and self.schedule.max_staleness > 0:
            raise ValueError(
                f"schedule.max_staleness is {self.schedule.max_staleness} but placement.kind is colocated: "
                "colocated runs are synchronous. Set schedule.max_staleness: 0, or give the engine its own cores "
                "or GPUs (placement.kind: split)."
            )
        if self.longest_row > self.learner.microbatch_tokens:
            what = "sampling.max_prompt_tokens + sampling.max_tokens"
            for name, environment in self.task.environments.items():
                if environment.limits.max_tokens == self.longest_row:
                    what = f"{self.task.key_of(name)}.environment.limits.max_tokens"
            raise ValueError(
                f"{what} is {self.longest_row} but learner.microbatch_tokens is {self.learner.microbatch_tokens}: "
                "one row must fit in a micro-batch. Raise the last or lower the first."
            )
        truncated = self.sampling.top_p < 1 or self.sampling.top_k > 0
        if truncated and not self.sampling.keep_sampling_mask and (found := self.algorithm.engine_ratio):
            raise ValueError(
                f"sampling.top_p is {self.sampling.top_p} and sampling.top_k is {self.sampling.top_k}: the engine "
                "samples from a truncated distribution that the learner does not renormalise, so every ratio of the "
                f"two would be biased, and algorithm.{found} takes one. Set sampling.keep_sampling_mask: true, or "
                "top_p: 1 and top_k: 0, or do without that ratio (algorithm.correction: none and the like)."
            )
        if self.sampling.keep_routing is True and self.engine.compile:
            raise ValueError(
                "sampling.keep_routing is true and so is engine.compile: the experts are recorded by code that a "
                "compiled model does not run. Set one of the two to false."
            )
        if self.schedule.prompts_per_step % self.schedule.minibatches:
            raise ValueError(
                f"schedule.prompts_per_step ({self.schedule.prompts_per_step}) is not a multiple of "
                f"schedule.minibatches ({self.schedule.minibatches})."
            )
        return self

    @model_validator(mode="after")
    def _is_judged_throughout(self) -> "Recipe":
        num_steps = self.schedule.num_steps
        for key, part in self.task.parts.items():
            for reward in part.rewards:
                if reward.is_scheduled and not any(reward.counts_at(v, num_steps) for v in range(num_steps)):
                    raise ValueError(
                        f"{key}.rewards: {reward.use} has first_step {reward.first_step} and last_step "
                        f"{reward.last_step}, but schedule.num_steps is {num_steps}: it would never count. Steps are "
                        f"weight versions, 0 to {num_steps - 1}, or -{num_steps} to -1 from the end."
                    )
            bare = None if part.environment is not None else uncovered_step(part.rewards, num_steps)
            if bare is not None and any(not reward.gate for reward in part.rewards):
                raise ValueError(
                    f"{key}.rewards: by their first_step and last_step no reward but gates counts at step {bare}, "
                    "where nothing would tell good answers from bad. Widen one of them, or add a reward for that time."
                )
        return self

    @model_validator(mode="after")
    def _cold_start_is_whole(self) -> "Recipe":
        if self.sft is not None and (self.sft.lora_result == "adapter" or self.sft.load_in_4bit):
            key = "load_in_4bit" if self.sft.load_in_4bit else "lora_result"
            raise ValueError(
                f"sft.{key} is {getattr(self.sft, key)}, but a recipe's cold start trains every weight, also where "
                "model.lora is set. Remove it, or begin with a stage of kind sft (docs/pipeline.md)."
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        for problem in (unknown_service(self.task, self.services), image_codes_problem(self)):
            if problem is not None:
                raise ValueError(problem)
        return self

    @property
    def longest_row(self) -> int:
        """Tokens that a training row has at most."""
        return longest_row(self.task, self.sampling)

    @property
    def longest_context(self) -> int:
        """Tokens that the engine must be able to hold of one sequence, in training and evaluation."""
        if len(self.task.environments) == len(self.task.parts):
            return self.longest_row
        return max(self.longest_row, self.sampling.max_prompt_tokens + (self.eval.max_tokens or 0))
