"""What is installed here, what will be used, and what to do about the rest: `rlhf doctor`.

What may crash or hang (a broken wheel, an old processor, a blocked port) is tried in a process of its own.
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
from rich.table import Table

from rlhf.cluster.launch import device_for
from rlhf.config.schema import PlacementConfig, Recipe
from rlhf.engines.choice import choose_engine
from rlhf.episodes.host import EnvironmentHost
from rlhf.errors import DependencyError, LoadError, PlacementError
from rlhf.machine import usable_cores
from rlhf.materials import load_environment
from rlhf.sandbox import landlock
from rlhf.sandbox.client import Sandbox
from rlhf.sandbox.execution import Limits, Program
from rlhf.sandbox.policy import ISOLATED, UNSAFE, WAYS, Policy
from rlhf.sandbox.self_test import ATTACKS, TierReport, examine_tiers
from rlhf.telemetry.logs import TERMINAL

Status = Literal["ok", "note", "missing"]
TESTED = {
    "torch": "2.13.0",
    "transformers": "5.19.0",
    "ray": "2.60.0",
    "trl": "1.16.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
}
"""Versions of requirements/*.txt, with which every test passes."""
GIB = 2**30
PROBE_S = 120.0
_NEEDED = "the sandbox is needed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact about this machine. `missing` means: a run will not start before `advice` is followed."""

    subject: str
    status: Status
    found: str
    advice: str = ""


def examine(recipe: Recipe | None) -> list[Finding]:
    """Look at Python, machine, packages, engine, Ray and sandbox, with the needs of `recipe` if one is given."""
    findings = [_python(), *_machine(), _processor_of_torch(), *_packages(), _torchvision(), *_content()]
    findings.append(_engine(recipe))
    findings.append(_ray())
    policy = Policy() if recipe is None else Policy(**recipe.sandbox.model_dump())
    findings.extend(sandbox(policy, is_needed=recipe is not None and needs_sandbox(recipe)))
    if recipe is not None:
        findings.extend(recipe_needs(recipe))
        findings.extend(asyncio.run(environment_needs(recipe)))
    return findings


def render(findings: Sequence[Finding]) -> int:
    """Print the findings as a table; 0 if a run can start, else 1."""
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    table = Table(title="rlhf doctor", title_justify="left")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(marks[finding.status], finding.subject, finding.found, finding.advice)
    TERMINAL.print(table)
    missing = [finding.subject for finding in findings if finding.status == "missing"]
    TERMINAL.print(
        f"A run cannot start: see {', '.join(missing)}." if missing else "Ready: a run can start here."
    )
    return 1 if missing else 0


def _python() -> Finding:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if supported:
        return Finding(subject="python", status="ok", found=found)
    return Finding(subject="python", status="missing", found=found, advice="use Python 3.11, 3.12 or 3.13")


def _machine() -> list[Finding]:
    cores, memory = usable_cores(), psutil.virtual_memory()
    findings = [
        Finding(
            subject="cores",
            status="ok" if cores > 1 else "note",
            found=f"{cores} usable of {os.cpu_count()}",
            advice=""
            if cores > 1
            else "engine and learner will share one core: set placement.kind: colocated",
        ),
        _space(
            "memory",
            memory.available,
            memory.total,
            need=4 * GIB,
            advice="the CPU quickstart needs about 4 GiB free",
        ),
    ]
    if os.path.isdir("/dev/shm"):
        shm = shutil.disk_usage("/dev/shm")
        advice = "weights and Ray objects travel through it; in a container start it with --shm-size=2g"
        findings.append(_space("/dev/shm", shm.free, shm.total, need=GIB, advice=advice))
    return findings


def _space(subject: str, free: int, total: int, *, need: int, advice: str) -> Finding:
    enough = free >= need
    found = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}"
    return Finding(
        subject=subject, status="ok" if enough else "note", found=found, advice="" if enough else advice
    )


def _processor_of_torch() -> Finding:
    import torch

    build = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch built for CPU only"
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding(
            subject="GPU", status="ok", found=f"{torch.cuda.device_count()} x {', '.join(names)}; {build}"
        )
    advice = "a GPU is present but not used: install the `gpu` extra" if shutil.which("nvidia-smi") else ""
    return Finding(
        subject="GPU", status="note" if advice else "ok", found=f"none in use; {build}", advice=advice
    )


def _packages() -> list[Finding]:
    findings = []
    for name, tested in TESTED.items():
        found = _version(name)
        if found is None:
            advice = f"pip install '{name}=={tested}'"
            findings.append(Finding(subject=name, status="missing", found="not installed", advice=advice))
        elif found.partition("+")[0] == tested:
            findings.append(Finding(subject=name, status="ok", found=found))
        else:
            advice = f"tested with {tested}: if something fails, try that first"
            findings.append(Finding(subject=name, status="note", found=found, advice=advice))
    return findings


def _content() -> list[Finding]:
    modules = {"math-verify": "math_verify", "reasoning-gym": "reasoning_gym"}
    advice = "needed by rewards.math_answer and the quickstart: pip install 'rlhf-loop[content]'"
    absent = [name for name, module in modules.items() if importlib.util.find_spec(module) is None]
    return [Finding(subject=name, status="note", found="not installed", advice=advice) for name in absent]


def _torchvision() -> Finding:
    if importlib.util.find_spec("torchvision") is None:
        return Finding(subject="torchvision", status="ok", found="not installed (not needed)")
    cause = probe("import torchvision", limit_s=PROBE_S)
    if cause is None:
        return Finding(
            subject="torchvision", status="ok", found=_version("torchvision") or "of unknown version"
        )
    advice = "built for another torch; transformers fails beside it: pip uninstall torchvision"
    return Finding(subject="torchvision", status="missing", found=cause, advice=advice)


def _engine(recipe: Recipe | None) -> Finding:
    kind = recipe.engine.kind if recipe else "auto"
    placement = recipe.placement if recipe else PlacementConfig()
    try:
        engine, reason = choose_engine(kind)
        device = device_for(placement)
    except (DependencyError, PlacementError) as error:
        return Finding(subject="engine", status="missing", found=f"{kind} cannot be used", advice=str(error))
    found = f"{engine} on {device}: {reason}"
    if engine != "vllm":
        advice = (
            "for vLLM: pip install -r requirements/cpu-vllm.txt, or the `gpu` extra" if engine == "hf" else ""
        )
        return Finding(subject="engine", status="note" if advice else "ok", found=found, advice=advice)
    cause = probe("from vllm.v1.engine.async_llm import AsyncLLM", limit_s=PROBE_S)
    if cause is None:
        return Finding(subject="engine", status="ok", found=f"{found}, and its engine imports")
    advice = "vLLM does not load here: set engine.kind: hf, or reinstall vLLM for this machine"
    return Finding(subject="engine", status="missing", found=cause, advice=advice)


def _ray() -> Finding:
    code = (
        "from pathlib import Path; from rlhf.cluster.launch import ray_session; "
        "from rlhf.config.schema import PlacementConfig\n"
        "with ray_session(PlacementConfig(num_cpus=1), code_dir=Path()): pass"
    )
    cause = probe(code, limit_s=PROBE_S)
    if cause is None:
        return Finding(subject="Ray", status="ok", found="a local Ray starts and ends")
    advice = (
        "a local Ray does not start: check free memory, /dev/shm and that localhost ports are not blocked"
    )
    return Finding(subject="Ray", status="missing", found=cause, advice=advice)


def sandbox(policy: Policy, *, is_needed: bool) -> list[Finding]:
    """The tier that programs get under this policy, and what every tier stops here."""
    if policy.remote:
        return [_server(policy, is_needed=is_needed)]
    began = time.monotonic()
    reports = {report.tier: report for report in examine_tiers(python=policy.python)}
    taken = next((tier for tier in policy.candidates if not reports[tier].unavailable), None)
    findings = [_tier(report) for tier, report in reports.items() if tier != taken]
    if taken is None:
        first = Finding(
            subject="sandbox",
            status="missing" if is_needed else "note",
            found=f"neither {' nor '.join(policy.candidates)} can be had here"
            if len(policy.candidates) > 1
            else f"{policy.candidates[0]} cannot be had here",
            advice=f"see below, or set sandbox.minimum: read-only and sandbox.unsafe: {UNSAFE}",
        )
    else:
        first = _tier(reports[taken])
        # What gets out of a tier that isolates would get out of the run.
        status = "missing" if reports[taken].escaped and taken in ISOLATED else first.status
        first = replace(first, subject="sandbox", found=f"{taken} ({first.found})", status=status)
    seconds = time.monotonic() - began
    return [replace(first, found=f"{first.found}; all tiers tried in {seconds:.1f} s"), *findings]


def _server(policy: Policy, *, is_needed: bool) -> Finding:
    with Sandbox(policy) as server:
        execution = server.run(Program(code="print(6 * 7)"), limits=Limits(cpu_s=1, wall_s=4))
    if execution.stdout.split() == [b"42"]:
        found = (
            f"{policy.remote} answers in {execution.wall_s:.1f} s; how it holds programs, it does not tell"
        )
        return Finding(subject="sandbox", status="ok", found=found)
    said = execution.detail or execution.stderr.decode(errors="replace") or execution.status
    advice = "start the server, correct sandbox.remote, or leave it out to run programs on this machine"
    return Finding(
        subject="sandbox", status="missing" if is_needed else "note", found=said[-300:], advice=advice
    )


def _tier(report: TierReport) -> Finding:
    subject, advice = f"sandbox: {report.tier}", []
    if report.unavailable:
        found = f"not here: {report.unavailable}"
        return Finding(subject=subject, status="note", found=found, advice=WAYS.get(report.tier, ""))
    found = f"{len(report.stopped)} of {len(ATTACKS)} attacks stopped"
    if report.tier == "landlock":
        found = f"ABI {landlock.abi()}, {found}"
        lacking = ", ".join(landlock.lacking(landlock.abi()))
        advice += [f"held by the system-call filter instead: {lacking}"] if lacking else []
    advice += [f"not stopped: {', '.join(report.escaped)}"] if report.escaped else []
    advice += [f"no verdict on: {', '.join(report.broken)}"] if report.broken else []
    is_sound = len(report.stopped) == len(ATTACKS)
    return Finding(
        subject=subject, status="ok" if is_sound else "note", found=found, advice="; ".join(advice)
    )


def needs_sandbox(recipe: Recipe) -> bool:
    """Whether a reward of the recipe imports the sandbox, or its environment uses it; seen in a process of its own."""
    names = sorted({reward.use for reward in recipe.task.all_rewards})
    played = sorted({environment.use for environment in recipe.task.environments.values()})
    code = (
        "import os, sys\nfrom rlhf.importing import load_object\n"
        f"for name in {names!r}: load_object(name, key='rewards')\n"
        "needed = 'rlhf.sandbox.client' in sys.modules\n"
        f"for name in {played!r}: needed |= getattr(load_object(name, key='use'), 'uses_sandbox', False)\n"
        # The last line, whatever importing has written, and nothing runs after it.
        f"if needed:\n    os.write(2, b'\\n{_NEEDED}\\n')\n    os._exit(1)"
    )
    return probe(code, limit_s=PROBE_S) == _NEEDED


def recipe_needs(recipe: Recipe) -> list[Finding]:
    """What this recipe asks for that is not here."""
    findings = []
    modules = {"tensorboard": "tensorboard", "wandb": "wandb"}
    for sink in recipe.telemetry.sinks:
        if importlib.util.find_spec(modules[sink]) is None:
            advice = f"pip install {sink}, or leave it out of telemetry.sinks"
            findings.append(Finding(subject=sink, status="missing", found="not installed", advice=advice))
    path = recipe.model.path
    if path is not None and not os.path.isdir(path):
        advice = "will be taken from the Hugging Face hub, or its cache, when training starts"
        findings.append(
            Finding(subject="model", status="note", found=f"{path} is not a folder here", advice=advice)
        )
    return findings


async def environment_needs(recipe: Recipe) -> list[Finding]:
    """Whether the recipe's environments load here, and have the interpreter that they ask for as `kwargs.python`."""
    return [
        finding
        for scenario in recipe.task.environments
        for finding in await _environment_needs(recipe, scenario)
    ]


async def _environment_needs(recipe: Recipe, scenario: str) -> list[Finding]:
    environment, key = recipe.task.environments[scenario], f"{recipe.task.key_of(scenario)}.environment"
    findings = []
    python = environment.kwargs.get("python")
    if isinstance(python, str) and shutil.which(os.path.expanduser(python)) is None:
        found = f"{key}.kwargs.python: {python!r} is no program here"
        advice = "make that virtual environment, as the environment's module says, or name another"
        findings.append(Finding(subject="interpreter", status="missing", found=found, advice=advice))
    began = time.monotonic()
    host = EnvironmentHost(load_environment(recipe, Path().resolve(), scenario))
    try:
        await host.start()
        found = f"{environment.use} loads in {time.monotonic() - began:.1f} s"
        findings.append(Finding(subject="environment", status="ok", found=found))
    except LoadError as error:
        advice = "install what it imports, or correct its `use` or kwargs under " + key
        lines = str(error).splitlines()
        findings.append(Finding(subject="environment", status="missing", found=lines[0], advice=advice))
    finally:
        await host.close()
    return findings


def probe(code: str, *, limit_s: float) -> str | None:
    """Run Python code in a process of its own: None if it succeeds, else the cause in one line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"no answer within {limit_s:g} s"
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return f"killed by {name}" + (" (an instruction this processor lacks)" if name == "SIGILL" else "")
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {process.returncode}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
