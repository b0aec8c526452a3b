"""What a job in the sandbox costs: every tier, cold and warm, beside a bare process and bubblewrap, interleaved.

`python benchmarks/sandbox.py [--rounds 60] [--cold 8] [--jobs 40] [--python /usr/bin/python3] [--json FILE]`
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from rlhf.errors import SandboxError
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import TIERS, Program, Tier
from rlhf.sandbox.policy import UNSAFE, Policy

Job = Callable[[], bytes]
CODE = "print(1)"
BUBBLEWRAP = (
    "bwrap --unshare-all --die-with-parent --new-session --cap-drop ALL --ro-bind /usr /usr --symlink usr/bin /bin "
    "--symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp --chdir /tmp "
    "--clearenv --setenv PATH /usr/bin --remount-ro /"
)
BARE, BWRAP = "bare subprocess", "bubblewrap, minimal root"
THROUGHPUT_ROUNDS = 5


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="warm jobs of each kind, one after another")
    parser.add_argument("--cold", type=int, default=8, help="fresh launchers of each tier")
    parser.add_argument("--jobs", type=int, default=40, help="jobs of each kind in a round of throughput")
    parser.add_argument("--python", default="/usr/bin/python3", help="interpreter of every job")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    with ExitStack() as stack:
        warm = contenders(options.python, stack)
        for job in warm.values():
            job()
        figures = {
            "warm": interleaved(warm, options.rounds),
            "cold": interleaved(cold_contenders(options.python, warm), options.cold),
            "one at once": throughput(warm, options.jobs, at_once=1),
            "two at once": throughput(warm, options.jobs, at_once=2),
        }
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures))


def contenders(python: str, stack: ExitStack) -> dict[str, Job]:
    """Jobs by name: without a sandbox, in bubblewrap, in a fork and a fresh interpreter of every tier there is."""
    command = [python, "-I", "-S", "-c", CODE]
    found: dict[str, Job] = {BARE: lambda: run(command)}
    if shutil.which("bwrap"):
        found[BWRAP] = lambda: run([*BUBBLEWRAP.split(), *command])
    for tier in TIERS:
        sandbox = stack.enter_context(Sandbox(policy(tier, python)))
        try:
            assert sandbox.tier == tier
        except SandboxError as error:
            sys.stderr.write(f"without {tier}: {error}\n")
            continue
        found[f"{tier}, fork"] = job(sandbox, Program(code=CODE))
        found[f"{tier}, fresh interpreter"] = job(sandbox, Program(argv=command))
    return found


def cold_contenders(python: str, warm: Mapping[str, Job]) -> dict[str, Job]:
    """A launcher started and ended for one job, in every tier that `warm` has; beside it what is always cold."""
    tiers = [tier for tier in TIERS if f"{tier}, fork" in warm]
    cold: dict[str, Job] = {name: warm[name] for name in (BARE, BWRAP) if name in warm}
    return cold | {f"{tier}, fork": lambda tier=tier: once(tier, python) for tier in tiers}


def policy(tier: Tier, python: str) -> Policy:
    return Policy(tier=tier, unsafe=UNSAFE, python=python)


def run(command: Sequence[str]) -> bytes:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout


def job(sandbox: Sandbox, program: Program) -> Job:
    return lambda: sandbox.run(program).stdout


def once(tier: Tier, python: str) -> bytes:
    with Sandbox(policy(tier, python)) as sandbox:
        return sandbox.run(Program(code=CODE)).stdout


def interleaved(jobs: Mapping[str, Job], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every job: one of each kind, then one of each again, so that noise meets all."""
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, action in jobs.items():
            began = time.perf_counter()
            output = action()
            spent[name].append(1000 * (time.perf_counter() - began))
            if output != b"1\n":
                raise RuntimeError(f"{name}: {output!r}")
    return spent


def throughput(jobs: Mapping[str, Job], count: int, *, at_once: int) -> dict[str, list[float]]:
    """Jobs per second of every kind, in rounds that interleave the kinds."""
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    with ThreadPoolExecutor(at_once) as pool:
        for _ in range(THROUGHPUT_ROUNDS):
            for name, action in jobs.items():
                began = time.perf_counter()
                list(pool.map(lambda _, action=action: action(), range(count)))
                rates[name].append(count / (time.perf_counter() - began))
    return rates


def table(figures: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown: ratios to a bare process and to bubblewrap first, then the figures."""
    warm, cold, one, two = (figures[name] for name in ("warm", "cold", "one at once", "two at once"))
    rows = [
        "| one job of `print(1)` | / bare | / bubblewrap | warm, ms (least) | cold, ms (least) | jobs/s, 1 at once "
        "| jobs/s, 2 at once |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, spent in warm.items():
        mid = median(spent)
        ratios = [f"{mid / median(warm[base]):.2f}" if base in warm else "-" for base in (BARE, BWRAP)]
        first = f"{median(cold[name]):.1f} ({min(cold[name]):.1f})" if name in cold else "-"
        rates = [f"{median(rate[name]):.0f}" for rate in (one, two)]
        cells = [name, *ratios, f"{mid:.1f} ({min(spent):.1f})", first, *rates]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
