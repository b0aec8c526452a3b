"""The lines about all rows: what each reward said of them, which golds are right, how long it took."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rlhf.check.judging import NOT_RIGHT, REWARDED, UNGRADABLE, Tally
from rlhf.check.report import Finding, Report, num_of
from rlhf.types import Outcome

_FREQUENT = 0.5
"""A constant answer that earns a larger share of the rows is worth a warning."""
_NUM_NAMED = 3


def say_rewards(tally: Tally, report: Report) -> None:
    """One line for each reward, one more for what it pays if it knows no gold or pays in part."""
    for name, reward in tally.rewards.items():
        what, seconds = f"reward {name}", _seconds(reward.seconds)
        means = {probe: reward.mean(probe) for probe in reward.values}
        report.say(
            what,
            f"applies to {reward.num_rows} of {tally.num_rows} rows; golds: {_counts(reward.gold_outcomes)}; "
            f"other answers: {_counts(reward.other_outcomes)}; {_milliseconds(seconds)} a completion",
            rows=reward.num_rows,
            gold_outcomes=dict(reward.gold_outcomes),
            other_outcomes=dict(reward.other_outcomes),
            seconds=seconds,
            mean_values=means,
            partial=dict(reward.partial),
            knows_gold=reward.compares,
        )
        if reward.num_rows and not reward.compares:
            shown = ", ".join(f"{probe} {mean:.3g}" for probe, mean in means.items() if mean is not None)
            report.say(what, f"does not tell golds from wrong answers; mean values: {shown}")
        elif reward.partial:
            shown = ", ".join(
                f"{probe} on {num_of(count, 'row')}" for probe, count in reward.partial.most_common()
            )
            report.say(what, f"pays a part of the gold's credit for: {shown}")


def say_golds(tally: Tally, report: Report) -> None:
    """How many golds are right, and what answering always the same would earn."""
    right = tally.num_right
    wrong = len({finding.row for finding in report.findings if finding.kind in (UNGRADABLE, NOT_RIGHT)})
    if right + wrong == 0:
        report.say("golds", "no row has one that a reward knows", right=0, rows=0)
        return
    without = tally.num_rows - tally.num_golds
    more = f"; {num_of(without, 'row')} without one" if without else ""
    report.say("golds", f"{right} of {right + wrong} graded right{more}", right=right, rows=right + wrong)
    if not right:
        return
    prefix = f"{REWARDED}: "
    kinds = Counter(f.kind.removeprefix(prefix) for f in report.findings if f.kind.startswith(prefix))
    paid = ", ".join(f"{kind} ({num_of(count, 'row')})" for kind, count in kinds.items())
    report.say(
        "wrong answers", f"paid for {paid}" if paid else "none of their kinds is paid", paid=dict(kinds)
    )
    if tally.earned:
        _say_constants(tally, report)


def _say_constants(tally: Tally, report: Report) -> None:
    shares = {answer: count / tally.num_judged for answer, count in tally.earned.most_common()}
    answer, share = next(iter(shares.items()))
    text = f"answering always {answer!r:.80} earns {share:.1%} of the rows"
    report.say("constant answers", text, shares=shares)
    if share > _FREQUENT:
        report.findings.append(Finding(kind="constant answer", row="", reason=text, is_fatal=False))


def say_time(tally: Tally, report: Report, seconds: float) -> None:
    """Seconds of the whole, of a row, and the rows with the slowest completions."""
    slowest = sorted(tally.slowest, reverse=True)
    named = "; ".join(f"row {row} {1000 * took:.2f} ms ({what})" for took, row, what in slowest[:_NUM_NAMED])
    per_row = seconds / max(tally.num_rows, 1)
    text = f"{tally.num_rows} rows in {seconds:.1f} s, {1000 * per_row:.2f} ms a row"
    report.say(
        "time",
        f"{text}; slowest: {named}" if named else text,
        seconds=seconds,
        seconds_per_row=per_row,
        slowest=[{"seconds": took, "row": row, "what": what} for took, row, what in slowest],
    )


def _counts(outcomes: Mapping[Outcome, int]) -> str:
    return ", ".join(f"{outcome} {count}" for outcome, count in outcomes.items()) or "none"


def _seconds(taken: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles of the seconds of single completions."""
    ordered = sorted(taken) or [0.0]
    last = len(ordered) - 1
    return {
        "mean": sum(ordered) / len(ordered),
        "p50": ordered[last // 2],
        "p99": ordered[min(last, len(ordered) * 99 // 100)],
        "max": ordered[last],
    }


def _milliseconds(seconds: Mapping[str, float]) -> str:
    mean, p50, p99 = (1000 * seconds[name] for name in ("mean", "p50", "p99"))
    return f"{mean:.2f} ms (p50 {p50:.2f}, p99 {p99:.2f})"
