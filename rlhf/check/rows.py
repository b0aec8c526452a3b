"""Which rows of the data repeat, contradict each other, or are in both splits."""

from collections.abc import Hashable, Sequence

from rlhf.check.probes import GOLD_COLUMN, normalised, same_answer
from rlhf.check.report import Finding
from rlhf.types import Prompt

_LONG_REASON = 80


def repeated_rows(prompts: Sequence[Prompt]) -> list[Finding]:
    """Rows of one source whose prompt (in normalised text) an earlier row has, with its gold or with another."""
    first: dict[Hashable, Prompt] = {}
    findings: list[Finding] = []
    for prompt in prompts:
        known = first.setdefault(_key(prompt), prompt)
        if known is prompt:
            continue
        ours, theirs = _gold(prompt), _gold(known)
        is_same = same_answer(ours, theirs)
        reason = f"the prompt of row {known.id}"
        if not is_same:
            reason += f", there with the gold {theirs!r:.{_LONG_REASON}}, here {ours!r:.{_LONG_REASON}}"
        kind = "same prompt and gold twice" if is_same else "conflict: same prompt, different golds"
        findings.append(Finding(kind=kind, row=prompt.id, reason=reason, is_fatal=False))
    return findings


def shared_rows(train: Sequence[Prompt], heldout: Sequence[Prompt]) -> list[Finding]:
    """Held-out rows whose prompt (in normalised text) is trained on."""
    known = {_key(prompt): prompt.id for prompt in reversed(train)}
    return [
        Finding(
            kind="held-out prompt also in task.train",
            row=prompt.id,
            reason=f"the prompt of training row {known[key]}",
            is_fatal=False,
        )
        for prompt in heldout
        if (key := _key(prompt)) in known
    ]


def _key(prompt: Prompt) -> Hashable:
    return tuple((m.role, normalised(m.content)) for m in prompt.messages), prompt.images


def _gold(prompt: Prompt) -> str:
    return prompt.reference or str(prompt.columns.get(GOLD_COLUMN) or "")
