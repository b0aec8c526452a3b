"""Who may import whom: pyproject.toml holds the contracts."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.test_content import IN_THE_SANDBOX

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "vllm", "transformers", "trl", "datasets", "numpy")


def test_import_contracts_hold():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stdout[result.stdout.find("Contracts") :] + result.stderr


@pytest.mark.parametrize(
    "module",
    [
        "rlhf",
        "rlhf.errors",
        "rlhf.types",
        "rlhf.importing",
        "rlhf.interfaces",
        "rlhf.config.loading",
        "rlhf.cli",
        "rlhf.episodes.mcp",
        "rlhf.episodes.program",
        "rlhf.episodes.tools",
        "rlhf.episodes.tool_environment",
        "rlhf.episodes.zygote",
    ],
)
def test_light_module_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert not result.stdout.split()


def test_content_loads_nothing_heavy():
    files = [path for name in ("rewards", "envs") for path in sorted((ROOT / name).rglob("*.py"))]
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files if p.name not in IN_THE_SANDBOX
    ]
    assert {"envs.two_tools", "envs.adapters.mcp", "rewards.math_answer"} <= set(modules)
    code = (
        f"import sys, {', '.join(modules)}; print(*[name for name in {HEAVY[:-1]!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert not result.stdout.split()
