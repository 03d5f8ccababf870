"""The cache: built once, whole or not at all, whoever else is building and whenever somebody is killed."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from redraft.server.engine.target.cache import build_once, cache_root
from redraft.server.engine.types import RedraftError

BUILDER = """
import sys, time
from pathlib import Path
from redraft.server.engine.target.cache import build_once

def build(scratch):
    (scratch / "half").write_text("half")
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    print("building", flush=True)
    time.sleep(float(sys.argv[3]))
    (scratch / "whole").write_text("whole")

build_once(Path(sys.argv[1]), build)
"""


def start(folder: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(folder), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def visible(folder: Path) -> list[str]:
    """What lies beside ``folder``, lock files left out."""
    return sorted(path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock"))


def test_two_processes_build_once(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache" / "model", tmp_path / "log"
    first = start(folder, log, 1.0)
    assert first.stdout is not None
    assert first.stdout.readline() == "building\n"
    second = start(folder, log, 0.0)
    said = second.communicate(timeout=30)[1]
    first.communicate(timeout=30)
    assert (first.returncode, second.returncode) == (0, 0)
    assert log.read_text() == "built\n"
    assert (folder / "whole").is_file()
    assert "Another process is preparing model" in said
    assert visible(folder) == ["model"]


def test_a_killed_build_leaves_nothing_that_counts(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache" / "model", tmp_path / "log"
    killed = start(folder, log, 60.0)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "building\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    assert not folder.exists()

    def build(scratch: Path) -> None:
        assert list(scratch.iterdir()) == []
        (scratch / "whole").touch()

    assert build_once(folder, build) == folder
    assert visible(folder) == ["model"]
    build_once(folder, lambda scratch: pytest.fail("built again"))


def test_a_failed_build_is_cleaned_up(tmp_path: Path) -> None:
    def build(scratch: Path) -> None:
        (scratch / "half").touch()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        build_once(tmp_path / "model", build)
    assert visible(tmp_path / "model") == []


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "is full"), (errno.EACCES, "cannot write"), (errno.EROFS, "cannot write")]
)
def test_what_the_disk_refuses_is_explained(tmp_path: Path, code: int, message: str) -> None:
    def build(scratch: Path) -> None:
        raise OSError(code, "no")

    with pytest.raises(RedraftError, match=f"{message}.*REDRAFT_CACHE"):
        build_once(tmp_path / "model", build)
    assert visible(tmp_path / "model") == []


def test_the_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("REDRAFT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "redraft"
