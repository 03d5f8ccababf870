"""Prompt files: what is read, and what is said of a broken one."""

from pathlib import Path

import pytest

from redraft.benchmarks.prompts import read_prompts
from redraft.server.engine.types import RedraftError


def test_first_turns_only_unless_asked(prompt_file: Path) -> None:
    assert [len(turns) for turns in read_prompts(prompt_file).conversations] == [1, 1, 1]
    assert [len(turns) for turns in read_prompts(prompt_file, multi_turn=True).conversations] == [2, 1, 1]


def test_limit_and_empty_lines(prompt_file: Path) -> None:
    prompt_file.write_text("\n\n" + prompt_file.read_text() + "not read {\n")
    found = read_prompts(prompt_file, 2)
    assert found.name == "questions.jsonl"
    assert [turns[0] for turns in found.conversations] == ["Repeat a b c a b c a b c.", "What is two and two?"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"turns": ["a"]', "not valid JSON"),
        ('{"prompt": "a"}', "no turns"),
        ('{"turns": []}', "no turns"),
        ('{"turns": [""]}', "no turns"),
        ('{"turns": ["a", 3]}', "no turns"),
        ('["a"]', "no turns"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"turns": ["fine"]}\n' + line + "\n")
    with pytest.raises(RedraftError, match=rf"bad\.jsonl:2: {reason}"):
        read_prompts(path)


def test_what_is_no_prompt_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(RedraftError, match=r"cannot read .*none\.jsonl \(No such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(RedraftError, match="Is a directory"):
        read_prompts(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RedraftError, match="not UTF-8"):
        read_prompts(tmp_path / "binary")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(RedraftError, match="holds no prompts"):
        read_prompts(tmp_path / "empty")
    with pytest.raises(RedraftError, match="--limit 0"):
        read_prompts(tmp_path / "empty", 0)
