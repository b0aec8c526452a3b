"""A collection made into files: what was kept, in pairs, how hard each prompt was, and the counts of it all."""

import contextlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config.reject import DecontaminateConfig
from rlhf.config.task import SourceConfig
from rlhf.data.collected import Collected, Sample
from rlhf.data.decontamination import Benchmarks, asked
from rlhf.data.prompt_stream import SourcePrompts
from rlhf.data.selection import Rules, Selection, pairs, select
from rlhf.offline.collect import read_collected
from rlhf.offline.rows import Write, new_rows, pair_row, prompt_row, training_row
from rlhf.run_folder import replace_file

SUMMARY = "summary.json"
_BINS = 10


def write_selected(collected: Path, rules: Rules, folder: Path) -> dict[str, float]:
    """Select from a complete collection into `folder`; returns the `reject/` metrics.

    Goes through the collection twice where there is a `limit`, and holds one prompt at a time.
    """
    config = rules.config
    benchmarks = None if config.decontaminate is None else load_benchmarks(config.decontaminate)
    last = None if config.limit is None else _last_drawn(collected, rules, benchmarks)
    counts = _Counts()
    with contextlib.ExitStack() as files:
        write_row = files.enter_context(new_rows(folder / f"rows.{config.format}"))
        write_prompt = files.enter_context(new_rows(folder / "prompts.jsonl"))
        write_pair = None if config.pairs is None else files.enter_context(new_rows(folder / "pairs.jsonl"))
        for one in read_collected(collected):
            found, names = _selected(one, rules, benchmarks)
            kept = [s for s in found.kept if last is None or _draw(one, s, config.seed) <= last]
            for sample in kept:
                write_row(training_row(one.prompt, sample, found.difficulty, config.keep_columns))
            write_prompt(prompt_row(one, found.difficulty, num_kept=len(kept), contaminated=names))
            counts.see(one, found, kept, names)
            if write_pair is not None:
                counts.num_pairs += _write_pairs(write_pair, one, found, rules)
    replace_file(folder / SUMMARY, json.dumps(counts.summary(), indent=1) + "\n")
    return counts.metrics()


def load_benchmarks(config: DecontaminateConfig) -> Benchmarks:
    """The test sets to keep apart from."""
    texts = {name: _questions(source, name) for name, source in config.against.items()}
    return Benchmarks(texts, ngram=config.ngram)


def _questions(source: SourceConfig, name: str) -> Iterator[str]:
    key = f"select.decontaminate.against.{name}"
    return map(asked, SourcePrompts(source=source, key=key, require_reference=False))


def _selected(one: Collected, rules: Rules, benchmarks: Benchmarks | None) -> tuple[Selection, list[str]]:
    names = [] if benchmarks is None else benchmarks.containing(asked(one.prompt))
    return select(one, rules, contaminated=bool(names)), names


def _write_pairs(write: Write, one: Collected, found: Selection, rules: Rules) -> int:
    made = pairs(one, found, rules.config)
    for chosen, rejected in made:
        write(pair_row(one.prompt, chosen, rejected))
    return len(made)


def _draw(one: Collected, sample: Sample, seed: int) -> int:
    """A number of 64 bits: the samples with the lowest are those that `limit` draws."""
    key = f"{seed}\x00{one.prompt.id}\x00{sample.index}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big")


def _last_drawn(collected: Path, rules: Rules, benchmarks: Benchmarks | None) -> int | None:
    """The highest number that is drawn; None: there is room for all. Holds eight bytes a sample."""
    drawn = array("Q")
    for one in read_collected(collected):
        found, _ = _selected(one, rules, benchmarks)
        drawn.extend(_draw(one, sample, rules.config.seed) for sample in found.kept)
    limit = rules.config.limit
    if limit is None or len(drawn) <= limit:
        return None
    return int(np.partition(np.frombuffer(drawn, dtype=np.uint64), limit - 1)[limit - 1])


@dataclass(slots=True, kw_only=True)
class _Counts:
    num_prompts: int = 0
    num_samples: int = 0
    num_tokens: int = 0
    kept: int = 0
    kept_prompts: int = 0
    kept_tokens: int = 0
    num_pairs: int = 0
    solved: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    contaminated: Counter[str] = field(default_factory=Counter)
    contaminated_prompts: int = 0
    graded: int = 0
    """Prompts with a pass rate."""
    pass_rates: float = 0.0
    """Their sum."""
    histogram: list[int] = field(default_factory=lambda: [0] * (_BINS + 1))
    """Prompts by pass rate, tenths rounded down; the last one: always solved."""

    def see(self, one: Collected, found: Selection, kept: Sequence[Sample], names: Sequence[str]) -> None:
        self.num_prompts += 1
        self.num_samples += len(one.samples)
        self.num_tokens += sum(sample.num_tokens for sample in one.samples)
        self.kept += len(kept)
        self.kept_prompts += bool(kept)
        self.kept_tokens += sum(sample.num_tokens for sample in kept)
        self.dropped.update(found.dropped.values())
        self.dropped["limit"] += len(found.kept) - len(kept)
        self.contaminated.update(names)
        self.contaminated_prompts += bool(names)
        self.solved += found.difficulty.num_correct > 0
        if found.difficulty.pass_rate is not None:
            self.graded += 1
            self.pass_rates += found.difficulty.pass_rate
            # In integers: 0.3 * 10 is less than 3.
            self.histogram[found.difficulty.num_correct * _BINS // found.difficulty.num_samples] += 1

    @property
    def pass_rate(self) -> float | None:
        """None where nothing could be graded."""
        return self.pass_rates / self.graded if self.graded else None

    @property
    def reasons(self) -> dict[str, int]:
        return {name: number for name, number in sorted(self.dropped.items()) if number}

    def summary(self) -> dict[str, Any]:
        """`kept` and `dropped` add up to `samples`."""
        return {
            "prompts": self.num_prompts,
            "samples": self.num_samples,
            "tokens": self.num_tokens,
            "kept": self.kept,
            "kept_prompts": self.kept_prompts,
            "kept_tokens": self.kept_tokens,
            "dropped": self.reasons,
            "pairs": self.num_pairs,
            "pass_rate": self.pass_rate,
            "solved_prompts": self.solved,
            "ungraded_prompts": self.num_prompts - self.graded,
            "pass_rate_histogram": self.histogram,
            "contaminated_prompts": self.contaminated_prompts,
            "contaminated_by": dict(sorted(self.contaminated.items())),
        }

    def metrics(self) -> dict[str, float]:
        found = {
            "num_prompts": self.num_prompts,
            "num_samples": self.num_samples,
            "pass_rate": self.pass_rate,
            "solved_share": self.solved / max(self.num_prompts, 1),
            "kept": self.kept,
            "kept_share": self.kept / max(self.num_samples, 1),
            "kept_prompts": self.kept_prompts,
            "kept_tokens": self.kept_tokens,
            "pairs": self.num_pairs,
            "contaminated": self.contaminated_prompts,
        } | {f"dropped/{name}": number for name, number in self.reasons.items()}
        return {f"reject/{name}": float(value) for name, value in found.items() if value is not None}
