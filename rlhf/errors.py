"""Errors a user or an operator can meet. Every one says what was found, what was expected and what to do.

Each child is also the standard library's error of its kind, and pickles, because it crosses processes.
"""


class RlhfError(Exception):
    """The root of every error this package raises on purpose; the CLI prints it without a traceback."""


class ConfigError(RlhfError, ValueError):
    """A recipe, an override or a combination of keys that cannot be run."""


class DataError(RlhfError, ValueError):
    """A prompt source, a row or a template that cannot be used."""


class ModelError(RlhfError, ValueError):
    """A model folder, tokenizer or architecture that cannot be used."""


class LoadError(RlhfError, ImportError):
    """A `module:attribute` that does not exist or has the wrong shape."""


class RewardError(RlhfError, RuntimeError):
    """Rewards failed (were not gradable) more often than the recipe allows."""


class JudgeError(RlhfError, RuntimeError):
    """A judge of images answered with something that is no score of them; names the judge, the query and the image."""


class SyncError(RlhfError, RuntimeError):
    """The engine does not hold the weights the learner published; training on would be silently off-policy."""


class EngineError(RlhfError, RuntimeError):
    """A rollout engine died or answered with something impossible."""


class ServiceError(RlhfError, RuntimeError):
    """A model that a run serves beside the policy did not start, or died; shows the last it said."""


class LearnerError(RlhfError, RuntimeError):
    """A learner rank died or produced a non-finite update."""


class PrecisionError(RlhfError, ArithmeticError):
    """Numbers that a narrow format cannot hold; says which tensor and what it holds."""


class DeadlineError(RlhfError, TimeoutError):
    """A call across processes missed its deadline; names the actor, the call and how long it waited."""


class CheckpointError(RlhfError, RuntimeError):
    """A checkpoint that is incomplete or belongs to another model or recipe."""


class PlacementError(RlhfError, RuntimeError):
    """The machine or cluster cannot hold what the recipe asks for."""


class DependencyError(RlhfError, ImportError):
    """An optional package that the recipe needs is not installed; says which extra brings it."""


class EpisodeError(RlhfError, RuntimeError):
    """An environment that failed, or failed too often; says which, in what, and how."""


class SandboxError(RlhfError, RuntimeError):
    """No sandbox of the asked strength can be had here, or it broke; says which tier failed, why, and the ways out."""


class StageError(RlhfError, RuntimeError):
    """A stage of a pipeline that ended without its result."""


class StaleError(RlhfError, RuntimeError):
    """A list of images that other weights, another gallery or other judges made than those of this run."""
