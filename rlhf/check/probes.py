"""Completions whose worth is known: a row's gold answer, and answers that no reward may pay for."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from string import ascii_lowercase, ascii_uppercase, digits

from rlhf.types import Prompt

GOLD_COLUMN = "gold_completion"
"""A prompt column with the whole text of a right completion; it comes before `task.gold_template`."""
NONSENSE = "no such answer"
CLASSICS = ("0", "1", "A", "yes")
GOLD, WRONG = "gold", "wrong answer in the gold's format"
NUM_WRONG = 2

_SLOT = "{reference}"
_LONG = 200
_NEXT = str.maketrans(
    {
        c: row[(i + 1) % len(row)]
        for row in (digits, ascii_lowercase, ascii_uppercase)
        for i, c in enumerate(row)
    }
)
_FENCE = re.compile(r"(```[^\n`]*\n)(.*?)(\n```|\Z)", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d{1,30}(?:\.\d{1,30})?")
_CHOICE = re.compile(r"\(?([A-Ja-j])[).]?")
_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One completion. `shows_answer`: it has text where an answer may stand; `constant`: the answer it always gives."""

    name: str
    completion: str
    shows_answer: bool = True
    constant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSet:
    """What the probes of all rows share: the gold's format and the data's own golds."""

    template: str
    constants: tuple[str, ...]
    """Answers that every row is tried with."""
    others: tuple[str, ...]
    """Short golds of the data, to offer beside a row's own."""

    @classmethod
    def from_prompts(cls, prompts: Sequence[Prompt], *, template: str) -> "ProbeSet":
        """Probes for these prompts; the first constant is their most frequent gold."""
        golds = Counter(p.reference for p in prompts if p.reference and GOLD_COLUMN not in p.columns)
        short = [gold for gold in golds if len(gold) <= _LONG]
        frequent = [max(short, key=golds.__getitem__)] if short else []
        return cls(
            template=template,
            constants=tuple(dict.fromkeys([*frequent, *CLASSICS])),
            others=tuple(short[:16]),
        )

    def of(self, prompt: Prompt) -> tuple[Probe, ...]:
        """The gold and NUM_WRONG wrong answers, then the rest, of equal completions one.

        A row without a gold has one wrong answer, and only what needs no gold after it.
        """
        gold = self._gold(prompt)
        first = [Probe(name=WRONG, completion=text) for text in self._wrong(gold, prompt)]
        if gold is not None:
            first.insert(0, Probe(name=GOLD, completion=gold))
        probes = self._empty()
        copied = prompt.messages[-1].content
        if not same_answer(copied, prompt.reference or ""):
            probes.append(Probe(name="copied prompt", completion=copied))
        if gold is not None:
            probes += _hidden(gold, prompt.reference or "")
            probes += self._hedged(prompt)
        constants = () if gold is None else self.constants
        always = [
            Probe(name=f"constant {answer!r}", completion=self._fill(answer), constant=answer)
            for answer in constants
        ]
        once = {probe.completion: probe for probe in reversed(probes)}
        return (*first, *reversed(once.values()), *always)

    def _fill(self, answer: str) -> str:
        return self.template.replace(_SLOT, answer)

    def _gold(self, prompt: Prompt) -> str | None:
        given = prompt.columns.get(GOLD_COLUMN)
        if given is not None:
            return str(given)
        return None if prompt.reference is None else self._fill(prompt.reference)

    def _wrong(self, gold: str | None, prompt: Prompt) -> list[str]:
        """A plain wrong answer, and one that only who knows the gold tells from it: as long, of its kind."""
        if gold is None:
            return [self._fill(NONSENSE)]
        if GOLD_COLUMN not in prompt.columns:
            return [self._fill(NONSENSE), self._fill(shifted(prompt.reference or ""))]
        thought, end, answer = gold.rpartition("</think>")
        if _FENCE.search(answer):
            plain = _FENCE.sub(r"\1pass\3", answer)
            moved = _FENCE.sub(lambda found: found[1] + shifted(found[2]) + found[3], answer)
        else:
            plain, moved = NONSENSE, shifted(answer)
        return [thought + end + plain, thought + end + moved]

    def _empty(self) -> list[Probe]:
        texts = {"empty": "", "white space": " \n\n\t ", "tags around nothing": self._fill("")}
        return [Probe(name=name, completion=text, shows_answer=False) for name, text in texts.items()]

    def _hedged(self, prompt: Prompt) -> list[Probe]:
        """The gold among others, as one answer and in free text; nothing for golds that are not one short answer."""
        gold = prompt.reference
        if not gold or len(gold) > _LONG or GOLD_COLUMN in prompt.columns:
            return []
        others = self._others(gold)
        middle = [others[0], gold, *others[1:]]
        return [
            Probe(name="options with the gold first", completion=self._fill(", ".join([gold, *others]))),
            Probe(name="options with the gold last", completion=self._fill(" or ".join([*others, gold]))),
            Probe(
                name="gold among candidates",
                completion=" ".join(f"It could be {option}." for option in middle),
            ),
        ]

    def _others(self, gold: str) -> list[str]:
        """Answers of the gold's kind that are not it."""
        choice = _CHOICE.fullmatch(gold)
        if choice:
            first = "A" if choice[1].isupper() else "a"
            last = max(chr(ord(first) + 3), choice[1])
            letters = (chr(code) for code in range(ord(first), ord(last) + 1))
            return [letter for letter in letters if letter != choice[1]]
        number = _NUMBER.fullmatch(gold.replace(",", ""))
        if number:
            value = Fraction(number[0])
            near = [value + 1, value - 1, value + 10]
            return [str(n) if n.denominator == 1 else f"{float(n):g}" for n in near]
        others = [other for other in self.others if not same_answer(other, gold)][:3]
        return others or ["something else", "none of these"]


def _hidden(gold: str, reference: str) -> list[Probe]:
    """The gold where no answer is looked for: in a think block, before its end, in one that never ends."""
    body = gold.rpartition("</think>")[2]
    if len(reference) <= _LONG:
        body = rf"{reference} \boxed{{{reference}}} {body}"
    texts = {
        "gold only in think": f"<think>{body}</think>",
        "gold before </think>": f"{body}</think>",
        "gold in an unfinished think": f"<think>{body}",
    }
    return [Probe(name=name, completion=text, shows_answer=False) for name, text in texts.items()]


def shifted(text: str) -> str:
    """`text` with every ASCII letter and digit replaced by the next one: as long, alike to the eye, and wrong."""
    return text.translate(_NEXT)


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are alike but for case, spacing, width, a final dot, and how a number is written."""
    first, second = normalised(one).rstrip("."), normalised(other).rstrip(".")
    return first == second or (_value(first) is not None and _value(first) == _value(second))


def may_hold(gold: str, answer: str) -> bool:
    """Whether `answer` is the gold or a word of it, so that a reward that takes it may be right."""
    words = _WORD.findall(normalised(gold))
    return same_answer(gold, answer) or any(same_answer(word, answer) for word in words)


def normalised(text: str) -> str:
    """`text` in one case, one width, and single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _value(text: str) -> Fraction | None:
    number = _NUMBER.fullmatch(text.replace(",", "").strip("$% "))
    return Fraction(number[0]) if number else None
