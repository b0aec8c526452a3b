"""What the benchmark prints."""

from collections.abc import Mapping, Sequence
from statistics import median

from rich.table import Table

from rlhf.config.schema import Recipe

Figures = Sequence[Mapping[str, float]]
FLOOR_TARGET = 0.80
TRL_TARGETS = {"equal lengths": 1.5, "one in eight ten times longer": 3.0}


def shorten(figures: Mapping[str, float]) -> str:
    """One line of a step's figures."""
    return "  ".join(f"{name} {value:.3g}" for name, value in figures.items())


def floor_table(figures: Figures, recipe: Recipe) -> Table:
    """Medians over steps: each part of the loop's step beside its floor."""
    mid = {name: median(step[name] for step in figures) for name in figures[0]}
    shape = f"{recipe.schedule.prompts_per_step} prompts x {recipe.schedule.samples_per_prompt} samples"
    table = Table(
        title=f"the loop against its floor: {shape}, medians of {len(figures)} steps "
        f"({mid['sampled']:.0f} sampled, {mid['packed']:.0f} packed tokens)"
    )
    table.add_column("part of a step")
    for name in ("floor s", "loop s", "above s"):
        table.add_column(name, justify="right")

    def row(name: str, floor: float | None, loop: float) -> None:
        table.add_row(
            name, "" if floor is None else f"{floor:.3f}", f"{loop:.3f}", f"{loop - (floor or 0):+.3f}"
        )

    def above(whole: str, *shares: str) -> float:
        return median(step[whole] - sum(step[share] for share in shares) for step in figures)

    row("generate (raw vLLM | until the last group is generated)", mid["vllm"], above("rollout", "score"))
    row("forward and backward (bare model | learner)", mid["bare"], mid["forward_backward"])
    row("AdamW and clipping", None, mid["optimizer"])
    row("update: split, send, collect", None, above("update", "forward_backward", "optimizer"))
    row("scoring after the last group", None, mid["score"])
    row("engine makes room", None, mid["sleep"])
    row("pack", None, mid["pack"])
    row("publish weights", None, above("sync", "probe"))
    row("verify them by the probe", None, mid["probe"])
    rest = above("step", "rollout", "sleep", "pack", "update", "sync")
    row("the rest (advantages, records, metrics)", None, rest)
    table.add_section()
    row("step", mid["vllm"] + mid["bare"], mid["step"])
    ratios = [step["ratio"] for step in figures]
    verdict = "reached" if median(ratios) >= FLOOR_TARGET else "missed"
    table.caption = (
        f"floor / loop: {median(ratios):.3f} (steps {min(ratios):.3f} to {max(ratios):.3f}); target "
        f"{FLOOR_TARGET:.2f} {verdict}. Completions equal to raw vLLM's: {100 * mid['same_tokens']:.1f} %"
    )
    return table


def trl_table(figures: Figures, mix: tuple[str, Sequence[int]]) -> Table:
    """Tokens per second of both, medians over steps."""
    name, limits = mix
    mid = {key: median(step[key] for step in figures) for key in figures[0]}
    table = Table(title=f"against TRL, {name}: samples of {sorted(set(limits))} tokens")
    for column in ("", "step s", "sampled tokens", "tokens/s"):
        table.add_column(column, justify="left" if not column else "right")
    for label, prefix in (("this loop", ""), ("TRL GRPOTrainer", "trl_")):
        table.add_row(
            label,
            f"{mid[prefix + 'step']:.2f}",
            f"{mid[prefix + 'sampled']:.0f}",
            f"{mid[prefix + 'tokens_per_s']:.0f}",
        )
    ratios = [step["ratio"] for step in figures]
    verdict = "reached" if median(ratios) >= TRL_TARGETS[name] else "missed"
    table.caption = (
        f"this loop / TRL: {median(ratios):.2f} (steps {min(ratios):.2f} to {max(ratios):.2f}); "
        f"target {TRL_TARGETS[name]} {verdict}"
    )
    return table
