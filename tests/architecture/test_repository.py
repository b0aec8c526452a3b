"""What the wheel holds, where tests lie, and that no file speaks of one person's machine."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import rlhf

ROOT = Path(__file__).parents[2]
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".tmpl", ".html", ""}
ONE_MACHINE = re.compile(
    r"(?<![\w.:/])/(?:home|root|Users|work|opt/pypi|opt/wheels)/|pypi\.org|pythonhosted\.org"
)


def tracked() -> list[Path]:
    """Files that are, or would be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def test_wheel_holds_the_engine_only(tmp_path):
    source = tmp_path / "source"
    folders = [
        folder for folder in ("rlhf", "rewards", "envs", "recipes", "tests") if (ROOT / folder).is_dir()
    ]
    for folder in folders:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        (source / name).write_text((ROOT / name).read_text() if (ROOT / name).is_file() else "")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"rlhf", f"rlhf_loop-{rlhf.__version__}.dist-info"}
    data = [
        p.relative_to(ROOT).as_posix() for s in ("*.py", "*.tmpl", "*.html") for p in (ROOT / "rlhf").rglob(s)
    ]
    assert set(data) | {"rlhf/py.typed"} <= set(names)


def test_no_file_names_a_path_of_one_machine_or_a_registry_host():
    found = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked()
        if path.suffix in TEXT
        and (match := ONE_MACHINE.search(path.read_text(encoding="utf-8", errors="ignore")))
    }
    assert not found


def test_no_binary_or_large_file_is_in_the_repository():
    large = {
        str(path.relative_to(ROOT)): path.stat().st_size
        for path in tracked()
        if path.stat().st_size > 600_000
    }
    assert not large


def test_unit_tests_mirror_the_source():
    folders = {
        path.name
        for path in (ROOT / "tests/unit").iterdir()
        if path.is_dir() and any(path.rglob("test_*.py"))
    }
    packages = {path.parent.name for path in (ROOT / "rlhf").rglob("__init__.py")} | {"rewards", "envs"}
    assert folders <= packages


def test_every_pin_is_exact_and_stands_in_one_file():
    pins: dict[str, str] = {}
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        for line in path.read_text().splitlines():
            if line.startswith("#") or not line.strip():
                continue
            name = re.split(r"==", line)[0]
            assert "==" in line, f"{path.name}: {line} is not pinned"
            assert pins.setdefault(name, path.name) == path.name, (
                f"{name} stands in {pins[name]} and {path.name}"
            )
    assert {"torchvision", "torchaudio", "torchcodec", "triton"}.isdisjoint(pins)


def test_lock_holds_every_dependency_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {
        re.split(r"[=\s]", line)[0].lower().replace("_", "-")
        for path in (ROOT / "requirements").glob("*.txt")
        for line in path.read_text().splitlines()
    }
    wanted = project["dependencies"] + [
        need for extra in ("cpu", "content", "dev") for need in project["optional-dependencies"][extra]
    ]
    names = {re.split(r"[<>=\[ ]", need)[0].lower().replace("_", "-") for need in wanted}
    assert names - {"rlhf-loop"} <= locked
