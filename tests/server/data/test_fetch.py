"""`redraft data fetch`, with a folder in place of the hub."""

from __future__ import annotations

import json
import sys
import types

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from redraft.server.data.prompt_files import read_prompts
from redraft.server.data.sets import SETS

RECORDS = {
    "gsm8k": {"question": "How many?", "answer": "4"},
    "math500": {"problem": "How many?", "solution": "4"},
    "humaneval": {"task_id": "HumanEval/0", "prompt": "def f():\n    '''{}'''\n"},
    "mt-bench": {"question_id": 81, "prompt": ["Write.", "Again."], "reference": []},
    "alpaca": {"instruction": "Sum up.", "input": "A text.", "output": "x"},
    "code-alpaca": {"instruction": "Sort a list.", "input": "", "output": "x"},
    "dolly": {"instruction": "Sum up.", "context": "A text.", "response": "x", "category": "summarization"},
    "ultrachat": {"prompt": "Tell me.", "prompt_id": "0", "messages": []},
}
TURNS = {
    "gsm8k": ["How many?"],
    "math500": ["How many?"],
    "humaneval": ["Complete the following Python function.\n```python\ndef f():\n    '''{}'''\n```"],
    "mt-bench": ["Write.", "Again."],
    "alpaca": ["Sum up.\n\nA text."],
    "code-alpaca": ["Sort a list."],
    "dolly": ["Sum up.\n\nA text."],
    "ultrachat": ["Tell me."],
}


class Batch:
    def __init__(self, records):
        self.to_pylist = lambda: records


class ParquetFile:
    """Reads what ``Hub`` writes, in the shape of pyarrow's reader."""

    def __init__(self, path):
        self.records = json.loads(path.read_text())

    def iter_batches(self):
        return [Batch(self.records[:1]), Batch(self.records[1:])]


class Hub:
    """Answers ``snapshot_download`` with a folder of the set's files."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []

    def holds(self, name, records, split=None, shards=1):
        public = SETS[name]
        pattern = public.files.replace("{split}", split or public.splits[0])
        for shard in range(shards):
            path = self.folder / pattern.replace("*", f"{shard:05}-of-{shards:05}")
            path.parent.mkdir(parents=True, exist_ok=True)
            part = records[shard::shards]
            text = "".join(json.dumps(r) + "\n" for r in part) if path.suffix == ".jsonl" else json.dumps(part)
            path.write_text(text)

    def download(self, repository, *, repo_type, allow_patterns):
        self.asked.append((repository, repo_type, allow_patterns))
        return str(self.folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    parquet = types.ModuleType("pyarrow.parquet")
    parquet.ParquetFile = ParquetFile
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    return hub


@pytest.mark.parametrize("name", SETS)
def test_each_set_becomes_a_prompt_file(data, hub, tmp_path, name):
    hub.holds(name, [RECORDS[name]] * 3)
    out = tmp_path / "prompts.jsonl"
    result = data("fetch", name, out=out)
    assert result.exit_code == 0, result.stderr
    several = len(SETS[name].splits) > 1
    row = {"source": f"{name}-{SETS[name].splits[0]}" if several else name, "turns": TURNS[name]}
    assert [json.loads(line) for line in out.read_text().splitlines()] == [row] * 3
    assert [prompt.text for prompt in read_prompts([out])] == TURNS[name][:1] * 3
    assert hub.asked == [
        (SETS[name].repository, "dataset", [SETS[name].files.replace("{split}", SETS[name].splits[0])])
    ]
    assert ("do not train on it" in result.stderr) == bool(SETS[name].held_out and not several)


def test_a_split_is_fetched_from_all_its_files_in_order_up_to_the_limit(data, hub, tmp_path):
    hub.holds("gsm8k", [{"question": "train"}])
    hub.holds("gsm8k", [{"question": q} for q in ("a", "c", "b", "d")], split="test", shards=2)
    out = tmp_path / "prompts.jsonl"
    result = data("fetch", "gsm8k", out=out, split="test", limit=3)
    assert [prompt.text for prompt in read_prompts([out])] == ["a", "b", "c"]
    assert "3 prompts of gsm8k (test)" in result.stderr
    assert "do not train on it" in result.stderr


def test_empty_prompts_are_left_out_and_counted(data, hub, tmp_path):
    hub.holds("dolly", [{"instruction": text, "context": ""} for text in ("one", " ", "", "two")])
    out = tmp_path / "prompts.jsonl"
    result = data("fetch", "dolly", out=out)
    assert [prompt.text for prompt in read_prompts([out])] == ["one", "two"]
    assert "2 prompts of dolly (train), 2 empty ones left out" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"title": "x"}\n', "is not laid out as expected: KeyError('instruction')"),
        ('{"instruction": 7, "context": ""}\n', "is not laid out as expected"),
        ('["instruction", "context"]\n', "is not laid out as expected"),
        ('{"instruction": "x", "con', "delete it and fetch it again"),
        ("", "holds no prompts"),
    ],
)
def test_files_that_are_not_as_expected_are_refused(data, hub, tmp_path, content, message):
    hub.holds("dolly", [])
    (hub.folder / "databricks-dolly-15k.jsonl").write_text(content)
    out = tmp_path / "prompts.jsonl"
    result = data("fetch", "dolly", out=out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub"]


def test_a_set_whose_files_are_gone_is_refused(data, hub, tmp_path):
    hub.folder.mkdir()
    result = data("fetch", "dolly", out=tmp_path / "prompts.jsonl")
    assert result.exit_code == 2
    assert "has no files databricks-dolly-15k.jsonl" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "there is no set 'nothing'; known are gsm8k, math500, humaneval"),
        (["gsm8k", "--split", "validation"], "gsm8k has no split 'validation'; it has train, test"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(data, hub, tmp_path, words, message):
    result = data("fetch", *words, out=tmp_path / "prompts.jsonl")
    assert (result.exit_code, hub.asked) == (2, [])
    assert message in result.stderr


def test_a_file_that_is_there_is_not_overwritten(data, hub, tmp_path):
    out = tmp_path / "prompts.jsonl"
    out.write_text("mine")
    result = data("fetch", "dolly", out=out)
    assert (result.exit_code, hub.asked, out.read_text()) == (2, [], "mine")
    assert data("fetch", "dolly", out=tmp_path / "no" / "prompts.jsonl").exit_code == 2
    assert hub.asked == []


def test_without_network_there_is_one_line(data, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("a long\nstory")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    result = data("fetch", "dolly", out=tmp_path / "prompts.jsonl")
    assert result.exit_code == 2
    assert result.stderr == (
        "redraft: databricks/databricks-dolly-15k is not on this machine and the hub cannot be reached; check the "
        "network\n"
    )


def test_parquet_needs_a_reader_before_anything_is_fetched(data, hub, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    result = data("fetch", "humaneval", out=tmp_path / "prompts.jsonl")
    assert (result.exit_code, hub.asked) == (2, [])
    assert "pip install pyarrow" in result.stderr
