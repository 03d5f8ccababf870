"""Training texts: what a row may be, and what is wrong with one, by file and line."""

import gzip
import json
from pathlib import Path

import pytest

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.data import Text, common_tokens, read_texts

VOCAB = 300


class Letters:
    """Code points; prompts begin with 256, answers that ended end with 257."""

    def prompt(self, text: str) -> tuple[int, ...]:
        return (256, *map(ord, text))

    def response(self, text: str, ended: bool) -> tuple[int, ...]:
        return (*map(ord, text), *((257,) if ended else ()))


def read(*paths: Path, max_length: int = 64) -> list[Text]:
    return read_texts(paths, Letters(), VOCAB, max_length)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_text_rows_are_encoded(tmp_path: Path) -> None:
    rows = [
        {"prompt": "ab", "response": "cde", "source": "letters", "temperature": 0.8},
        {"prompt": "a", "response": "bc", "finish_reason": "stop"},
        {"prompt": "a", "response": "bc", "finish_reason": "length"},
    ]
    assert read(write(tmp_path / "x.jsonl", *rows)) == [
        Text((256, 97, 98, 99, 100, 101, 257), 3, "letters", 0.8),
        Text((256, 97, 98, 99, 257), 2),
        Text((256, 97, 98, 99), 2),
    ]


def test_ids_win_over_text(tmp_path: Path) -> None:
    rows = [
        {"prompt": "ab", "prompt_ids": [1, 2], "response": "cd", "response_ids": [3, 4, 5]},
        {"prompt": "ab", "response": "cd", "response_ids": [3, 4]},
        {"prompt_ids": [1], "response": "cd"},
    ]
    found = [(text.tokens, text.prompt) for text in read(write(tmp_path / "x.jsonl", *rows))]
    assert found == [((1, 2, 3, 4, 5), 2), ((256, 97, 98, 3, 4), 3), ((1, 99, 100, 257), 1)]


def test_files_are_read_in_order_packed_or_not(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", {"prompt_ids": [1], "response_ids": [2, 3]}, "", "  ")
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps({"prompt_ids": [4], "response_ids": [5, 6]}).encode()))
    assert [text.tokens for text in read(packed, plain)] == [(4, 5, 6), (1, 2, 3)]


def test_texts_are_cut_and_those_without_an_answer_dropped(tmp_path: Path) -> None:
    sizes = ((3, 9), (6, 4), (7, 3), (2, 1))
    rows = [{"prompt_ids": [1] * prompt, "response_ids": [2] * response} for prompt, response in sizes]
    texts = read(write(tmp_path / "x.jsonl", *rows), max_length=8)
    assert [(len(text.tokens), text.prompt) for text in texts] == [(8, 3), (8, 6)]


GOOD = {"prompt_ids": [1], "response_ids": [2, 3]}
BAD = {
    "not-json": ('{"prompt": "a", ', "not JSON"),
    "number": ("1" * 5000, "not JSON"),
    "list": ("[1, 2]", "not a JSON object"),
    "no-prompt": ({"response": "b"}, "neither prompt_ids nor the text prompt"),
    "no-response": ({"prompt": "a"}, "neither response_ids nor the text response"),
    "response-is-a-number": ({"prompt": "a", "response": 5}, "neither response_ids nor the text response"),
    "ids-are-text": ({"prompt_ids": "12", "response": "b"}, "prompt_ids is not a list of token ids"),
    "ids-are-floats": ({"prompt_ids": [1], "response_ids": [1.0]}, "response_ids is not a list of token ids"),
    "ids-are-booleans": ({"prompt_ids": [True], "response_ids": [1]}, "prompt_ids is not a list of token ids"),
    "id-too-large": ({"prompt_ids": [1], "response_ids": [2, VOCAB]}, f"not in the target's vocabulary of {VOCAB}"),
    "id-negative": ({"prompt_ids": [-1], "response_ids": [2]}, f"not in the target's vocabulary of {VOCAB}"),
    "empty-prompt": ({"prompt_ids": [], "response_ids": [2, 3]}, "the prompt has no tokens"),
    "temperature": (GOOD | {"temperature": "hot"}, "temperature is 'hot', not a number"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, kind: str) -> None:
    row, message = BAD[kind]
    path = write(tmp_path / "x.jsonl", GOOD, "", row, GOOD)
    with pytest.raises(DraftError) as told:
        read(path)
    assert str(told.value).startswith(f"{path}, line 3: ")
    assert message in str(told.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    content = gzip.compress(b"".join(json.dumps(GOOD | {"n": n}).encode() + b"\n" for n in range(400)))
    files = {
        "gone.jsonl": None,
        "folder.jsonl": "folder",
        "plain.jsonl.gz": b"{}\n",
        "cut.jsonl.gz": content[: len(content) // 2],
        "flipped.jsonl.gz": content[:40] + bytes(b ^ 0xFF for b in content[40:60]) + content[60:],
        "latin1.jsonl": '{"prompt": "é"}'.encode("latin1"),
    }
    for name, data in files.items():
        path = tmp_path / name
        if data == "folder":
            path.mkdir()
        elif data is not None:
            path.write_bytes(data)
        with pytest.raises(DraftError) as told:
            read(path)
        assert str(told.value).startswith(f"{path}"), name


@pytest.mark.parametrize("rows", [(), ({"prompt_ids": [1], "response_ids": [2]},)], ids=["empty", "too-short"])
def test_nothing_usable(tmp_path: Path, rows: tuple) -> None:
    path = write(tmp_path / "x.jsonl", *rows)
    with pytest.raises(DraftError, match=rf"no usable row in {path}"):
        read(path)


def test_common_tokens_are_those_of_answers() -> None:
    texts = [Text((9, 9, 9, 9, 5, 5, 7, 3), 4), Text((8, 5, 7, 7, 4), 1)]  # answers: 5 three times, 7 three times, 3, 4
    assert common_tokens(texts, 2, 12) == (5, 7)
    assert common_tokens(texts, 3, 12) == (3, 5, 7)
    assert common_tokens(texts, 6, 12) == (0, 1, 3, 4, 5, 7)
    assert common_tokens(texts, 3, 12, always=(11,)) == (5, 7, 11)
    assert common_tokens(texts, 12, 12) == tuple(range(12))
