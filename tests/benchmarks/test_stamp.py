"""Where figures come from."""

import subprocess
from pathlib import Path

import pytest

from redraft.benchmarks import stamp as module
from redraft.benchmarks.stamp import stamp, without_places, without_secrets


def test_says_command_machine_and_versions() -> None:
    found = stamp(["redraft", "bench", "speed", "--prompts", "a file.jsonl"], gpu="Some GPU")
    assert found["command"] == "redraft bench speed --prompts 'a file.jsonl'"
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["cpu"]
    assert found["machine"]["gpu"] == "Some GPU"
    assert found["versions"]["torch"]
    assert found["date"].endswith("+00:00")


def test_keys_are_struck_out() -> None:
    assert without_secrets(["bench", "--api-key", "abc", "--model", "m"]) == [
        "bench",
        "--api-key",
        "***",
        "--model",
        "m",
    ]
    assert without_secrets(["--api-key=abc"]) == ["--api-key=***"]


def test_places_are_told_by_name_alone() -> None:
    given = ["bench", "--prompts", "/home/me/a file.jsonl", "--results=/srv/results/", "benchmarks/results", "/"]
    assert without_places(given) == [
        "bench",
        "--prompts",
        "a file.jsonl",
        "--results=results",
        "benchmarks/results",
        "/",
    ]
    assert stamp(given)["command"] == "bench --prompts 'a file.jsonl' --results=results benchmarks/results /"
    # an address is no place on this machine, nor is a name with an equals sign in it
    kept = ["--url", "http://127.0.0.1:8000/v1", "--url=http://localhost/", "a=/b"]
    assert without_places(kept) == kept


@pytest.mark.parametrize(("name", "known"), [("redraft", True), ("another", False)])
def test_commit_is_told_of_this_project_only(tmp_path: Path, name: str, known: bool) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    git("add", ".")
    git("commit", "--no-verify", "-m", "first")
    commit, dirty = module._commit(tmp_path)
    assert (len(commit or "") == 40, dirty) == ((True, False) if known else (False, None))
    if known:
        (tmp_path / "benchmarks" / "results").mkdir(parents=True)
        (tmp_path / "benchmarks" / "results" / "speed.jsonl").write_text("{}\n")
        assert module._commit(tmp_path) == (commit, False), "results do not make the code another"
        (tmp_path / "code.py").touch()
        assert module._commit(tmp_path) == (commit, True)
