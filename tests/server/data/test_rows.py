"""Lines of prompt and response files, and the file that grows by them."""

from __future__ import annotations

import errno
import json
from io import FileIO

import msgspec
import pytest

from redraft.server.data.prompt_files import read_prompts
from redraft.server.data.row_file import RowFile, open_rows
from redraft.server.data.rows import PromptRow, dump, load, row_seed
from redraft.server.engine.types import RedraftError

ROWS = [PromptRow(source="s", turns=(text,)) for text in ("one", 'two "quoted"\n\ud7ff日本', "three\u2028\x85")]


def taken(path):
    rows = []
    with open_rows(path, PromptRow, lambda place, row: rows.append(row)):
        return rows


def test_rows_come_back_as_they_were():
    for row in ROWS:
        assert load(dump(row), PromptRow, "here", "") == row


def test_a_row_is_one_line_to_every_reader():
    for row in ROWS:
        text = dump(row).decode()
        assert text.splitlines(keepends=True) == [text]
        assert json.loads(text)["turns"] == list(row.turns)


def test_seeds_follow_from_the_key_alone():
    assert row_seed(0, "a", 1) == row_seed(0, "a", 1)
    keys = [(seed, text, sample) for seed in (0, 1, -1) for text in ("a", "b") for sample in (0, 1)]
    seeds = {row_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**53 for seed in seeds)


@pytest.mark.parametrize("lost", range(1, len(dump(ROWS[1])) + 1))
def test_a_line_torn_anywhere_is_cut_off(tmp_path, lost):
    path = tmp_path / "rows.jsonl"
    data = dump(ROWS[0]) + dump(ROWS[1])
    path.write_bytes(data[: len(data) - lost])
    # all but the line break: the row is whole
    whole = 2 if lost == 1 else 1
    assert taken(path) == ROWS[:whole]
    with open_rows(path, PromptRow, lambda place, row: None) as rows:
        for row in ROWS[whole:]:
            rows.append(row)
    assert path.read_bytes() == b"".join(map(dump, ROWS))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("a poem\nof two lines", 1),
        ("my only line", 1),
        ('{"answer": 42}', 1),
        ('{"source":"s","turns":["a"]}\n{"sour\n{"source":"s","turns":["a"]}\n', 2),
        ('{"source":"s","turns":[]}\n', 1),
        ('{"source":"s","turns":["a"]}\nmy own no', 2),
    ],
)
def test_what_is_not_the_commands_is_left_as_it_is(tmp_path, content, place):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(RedraftError, match=rf"rows\.jsonl:{place}: .*give another --out"):
        taken(path)
    assert path.read_text() == content


class FullDisk(FileIO):
    """Takes ``room`` more bytes."""

    room = 0

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(memoryview(data)[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 10])
def test_a_full_disk_keeps_what_was_there(tmp_path, room):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(dump(ROWS[0]))
    with FullDisk(path, "a+") as stream:
        stream.room = len(dump(ROWS[1])) + room
        rows = RowFile(path, stream, path.stat().st_size)
        rows.append(ROWS[1])
        with pytest.raises(RedraftError, match=r"disk of .* is full; .* run the same command again"):
            rows.append(ROWS[2])
    assert path.read_bytes() == dump(ROWS[0]) + dump(ROWS[1])


def test_short_writes_are_finished(tmp_path):
    class Slow(FileIO):
        def write(self, data):
            return super().write(memoryview(data)[:7])

    path = tmp_path / "rows.jsonl"
    with Slow(path, "a+") as stream:
        rows = RowFile(path, stream, 0)
        for row in ROWS:
            rows.append(row)
    assert taken(path) == ROWS


def test_two_runs_do_not_write_one_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    held = open_rows(path, PromptRow, lambda place, row: None)
    with held, pytest.raises(RedraftError, match="another process is writing"):
        taken(path)
    assert taken(path) == []


def test_places_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(RedraftError, match="there is no folder"):
        taken(tmp_path / "missing" / "rows.jsonl")
    with pytest.raises(RedraftError, match="Is a directory"):
        taken(tmp_path)
    with pytest.raises(RedraftError, match="is not a file"):
        taken(type(tmp_path)("/dev/null"))


def test_prompts_are_first_turns_with_their_source_and_place(tmp_path):
    named, bare = tmp_path / "named.jsonl", tmp_path / "bare.jsonl"
    named.write_text('{"turns": ["a\u2028b", "more"], "source": "set", "category": 3}\n\n{"turns": ["c"]}\n')
    bare.write_text('{"turns": ["d"]}')
    found = [(prompt.source, prompt.text, prompt.place) for prompt in read_prompts([named, bare])]
    assert found == [("set", "a\u2028b", f"{named}:1"), ("named", "c", f"{named}:3"), ("bare", "d", f"{bare}:1")]
    assert [prompt.text for prompt in read_prompts([named, bare], limit=1)] == ["a\u2028b", "d"]


@pytest.mark.parametrize(
    "line",
    [
        b"no json",
        b'{"turns": "text"}',
        b'{"turns": []}',
        b'{"turns": [""]}',
        b'{"turns": [1]}',
        b"[]",
        b'{"turns": ["\xff"]}',
    ],
)
def test_lines_that_are_no_prompts_are_named(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"turns": ["fine"]}\n' + line + b'\n{"turns": ["fine"]}\n')
    # also behind the limit: a mistake is found before work, not when the limit is raised
    with pytest.raises(RedraftError, match=r"prompts\.jsonl:2: "):
        read_prompts([path], limit=1)


def test_files_without_prompts_are_refused(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(RedraftError, match="holds no prompts"):
        read_prompts([empty])
    with pytest.raises(RedraftError, match="cannot read"):
        read_prompts([tmp_path / "missing.jsonl"])


def test_half_a_surrogate_is_no_text():
    with pytest.raises(RedraftError, match=r"here: "):
        load(rb'{"turns": ["\ud800"]}', PromptRow, "here", "")
    assert msgspec.json.decode(rb'{"turns": ["\ud83d\ude00"]}', type=PromptRow).turns == ("😀",)
