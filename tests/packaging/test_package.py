"""What ships: the package list, the wheel's content, the pins."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

FOLDERS = ("server", "drafts", "kernels", "benchmarks")


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, str]:
    """Version by name; every line must be ``name==version`` in normal form."""
    lines = (repository / "constraints.txt").read_text().splitlines()
    parts = [re.fullmatch(r"([a-z0-9]+(?:-[a-z0-9]+)*)==((?:[0-9]+!)?[0-9][0-9a-z.]*)", line) for line in lines]
    assert [line for line, part in zip(lines, parts, strict=True) if part is None] == []
    assert lines == sorted(set(lines))
    return dict(part.groups() for part in parts if part is not None)


def test_every_folder_with_python_files_is_packaged(repository: Path, project: dict[str, Any]) -> None:
    found = {
        "redraft." + ".".join(path.parent.relative_to(repository).parts)
        for folder in FOLDERS
        for path in (repository / folder).rglob("*.py")
    }
    setuptools = project["tool"]["setuptools"]
    assert set(setuptools["packages"]) == found
    assert setuptools["package-dir"] == {f"redraft.{folder}": folder for folder in FOLDERS}


def test_no_folder_shadows_another_package(repository: Path) -> None:
    assert not (repository / "redraft").exists()
    assert not (repository / "kernels" / "__init__.py").exists()


def test_every_mapped_folder_is_typed(repository: Path) -> None:
    assert [folder for folder in FOLDERS if not (repository / folder / "py.typed").is_file()] == []


def test_every_direct_dependency_is_pinned_within_its_range(project: dict[str, Any], pins: dict[str, str]) -> None:
    wanted = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["dev"]
    wanted += project["build-system"]["requires"]
    requirements = [Requirement(line) for line in wanted]
    names = {r.name.lower().replace("_", "-"): r for r in requirements}
    outside = [name for name, r in names.items() if name not in pins or not r.specifier.contains(pins[name])]
    assert outside == []


def test_pins_fit_the_cuda_build_of_torch(pins: dict[str, str]) -> None:
    assert (pins["torch"], pins["triton"]) == ("2.13.0", "3.7.1")
    # the build of torch brings its own versions of these
    # nvidia-ml-py is not of CUDA's libraries
    assert [name for name in pins if name.startswith(("nvidia-", "cuda-"))] == ["nvidia-ml-py"]


def test_the_wheel_holds_our_packages_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in (*FOLDERS, "tests"):
        shutil.copytree(repository / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(repository / name, tree)
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(tmp_path), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {name for name in names if name.startswith("redraft/")}
    assert {name.partition("/")[0] for name in names - ours} == {f"{wheel.name.rpartition('-py3')[0]}.dist-info"}
    expected = {
        f"redraft/{path.relative_to(tree)}"
        for folder in FOLDERS
        for pattern in ("*.py", "py.typed", "page/*")
        for path in (tree / folder).rglob(pattern)
    }
    assert expected <= ours
    assert {Path(name).suffix for name in ours - expected} <= {".safetensors", ".json", ".jsonl", ".c", ".h"}
