"""What the GPU suite asks: token ids from files, sets by name, some of each for peers."""

import json
from pathlib import Path

import pytest

from redraft.benchmarks.gpu_suite import parse
from redraft.benchmarks.suite_context import Suite
from redraft.benchmarks.suite_prompts import read_id_prompts
from redraft.server.engine.types import RedraftError


def test_id_prompts(tmp_path: Path, tiny_target: Path, prompt_file: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text("[[1, 2], [3]]")
    assert read_id_prompts(path, None) == [[1, 2], [3]]
    assert len(read_id_prompts(prompt_file, tiny_target)) == 3
    for bad in ("{}", "[]", "[[]]", '[["a"]]', "[1"):
        path.write_text(bad)
        with pytest.raises(RedraftError, match="must hold a list of lists of token ids"):
            read_id_prompts(path, None)


def test_text_needs_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--out", "x", "--prompts", "a.jsonl"])
    assert "needs --target" in capsys.readouterr().err


def test_sets_of_prompts(tmp_path: Path) -> None:
    """Each file is a set by its name, and peers get some of each."""
    files = []
    for number, name in enumerate(("gsm8k", "human-eval")):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps([[10 * number + place] for place in range(5 + number)]))
    given = [word for file in files for word in ("--prompts", str(file))]
    suite = Suite(parse(["--out", str(tmp_path), "--device", "cpu", *given]))
    assert {name: len(prompts) for name, prompts in suite.sets.items()} == {"gsm8k": 5, "human-eval": 6}
    assert suite.peer_work == ([[0], [10], [1], [11], [2], [12]], 128)
    assert len(suite.mixed) == 11
    assert (suite.equality_prompts, suite.equality_tokens) == (200, 256)


def test_two_sets_of_one_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--prompts", "a/gsm8k.json", "--prompts", "b/gsm8k.json"])
    assert "may not have the same name" in capsys.readouterr().err
