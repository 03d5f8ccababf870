"""`redraft data prompts`: where the target begins, what is kept of what it writes, and going on after a stop."""

from __future__ import annotations

import json

import pytest

from redraft.server.chat_template import ChatTemplate
from redraft.server.data import prompts as command
from redraft.server.data.decode import Decoded, decode
from redraft.server.data.prompts import Record, Settings, in_order, opening
from redraft.server.data.row_file import RowFile
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import FinishReason, RedraftError, Request, SamplingParams
from redraft.server.text import TextTokenizer

ASK = {"count": 8, "max_tokens": 24, "temperature": 1.0}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def tiny(talker):
    return TextTokenizer.from_folder(talker)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """What a run that nothing interrupts writes, and what it says of it."""
    out = tmp_path_factory.mktemp("whole") / "prompts.jsonl"
    result = data("prompts", out=out, **ASK)
    assert result.exit_code == 0, result.stderr
    return out, result.stderr


def test_the_target_begins_where_the_user_does(tiny):
    ids = opening(tiny, tiny.chat_template, (511,))
    assert ids == tiny.encode("<|im_start|>user\n", special_tokens=False)


def test_a_system_message_of_the_template_comes_first(tiny):
    template = ChatTemplate("<|im_start|>system\nBe kind.<|im_end|>{{ messages[0].content }}<|im_end|>", {})
    ids = opening(tiny, template, (511,))
    assert ids == tiny.encode("<|im_start|>system\nBe kind.<|im_end|>", special_tokens=False)


def test_letters_that_join_the_first_word_are_the_targets_to_write():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"[": 0, "]": 1, "▁": 2, "Z": 3, "▁Z": 4, "q": 5, "<|im_end|>": 6, "7": 7, "m": 8}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "Z")], unk_token="["))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    raw.add_special_tokens(["<|im_end|>"])
    template = ChatTemplate("[] {{ messages[0].content }}<|im_end|>", {})
    assert opening(TextTokenizer(raw, template), template, (6,)) == (0, 1)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ messages[0].content }}<|im_end|>", "does not open a user's turn"),
        ("a {{ messages[0].content }} b {{ messages[0].content }}<|im_end|>", "in one place"),
        ("a<|im_end|>", "in one place"),
        ("a {{ messages[0].content | upper }}<|im_end|>", "in one place"),
        ("[INST] {{ messages[0].content }} [/INST]", "without an end-of-turn token"),
        ("<|im_end|>{{ messages[0].content }}<|endoftext|>", "without an end-of-turn token"),
    ],
)
def test_templates_that_hide_where_a_turn_begins_or_ends_are_refused(tiny, source, reason):
    with pytest.raises(RedraftError, match=reason):
        opening(tiny, ChatTemplate(source, {}), (511,))


def test_prompts_are_new_each_time_and_reports_add_up(whole):
    out, said = whole
    rows = read(out)
    texts = [row["turns"][0] for row in rows]
    assert len(texts) == len(set(texts)) == 8
    assert all(text and text == text.strip() and "\ufffd" not in text for text in texts)
    assert {row["source"] for row in rows} == {"magpie"}
    attempts = rows[-1]["attempt"] + 1
    (report,) = [line for line in said.splitlines() if "attempts kept" in line]
    numbers = [int(word.strip("(,")) for word in report.split() if word.strip("(,").isdigit()]
    kept, total, *dropped = numbers[:6]
    assert (kept, total) == (8, attempts)
    assert kept + sum(dropped) == total
    assert sum(dropped) > 0


def test_a_prompt_is_what_follows_the_opening_by_its_seed(whole, talker, tiny):
    row = read(whole[0])[0]
    engine = build_engine(EngineConfig(str(talker), "talker", "", draft="none", device="cpu", dtype="fp32"))
    start = tiny.encode("<|im_start|>user\n", special_tokens=False)
    params = SamplingParams(row["max_tokens"], row["temperature"], seed=row["seed"])
    (decoded,) = decode(engine, [Request("alone", start, params)], lambda tokens: None)
    assert decoded.tokens[-1] in engine.info.eos_token_ids
    assert row["turns"] == [tiny.decode(decoded.tokens[:-1]).strip()]


def test_the_batch_changes_no_prompt(whole, data, tmp_path):
    out = tmp_path / "prompts.jsonl"
    assert data("prompts", out=out, max_num_seqs=2, draft="none", **ASK).exit_code == 0
    rows, expected = read(out), read(whole[0])
    assert rows == expected


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_an_interrupted_run_goes_on_to_the_same_file(whole, data, tmp_path, monkeypatch, rows):
    out = tmp_path / "prompts.jsonl"
    append = RowFile.append

    def interrupted(self, row):
        if len(read(out)) == rows:
            raise KeyboardInterrupt
        append(self, row)

    monkeypatch.setattr(RowFile, "append", interrupted)
    result = data("prompts", out=out, **ASK)
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr
    assert len(read(out)) == rows
    monkeypatch.setattr(RowFile, "append", append)
    assert data("prompts", out=out, **ASK).exit_code == 0
    assert out.read_bytes() == whole[0].read_bytes()


def test_more_may_be_asked_for_and_enough_is_enough(whole, data, tmp_path):
    out = tmp_path / "prompts.jsonl"
    out.write_bytes(whole[0].read_bytes())
    assert f"{out} is complete: 8 prompts" in data("prompts", out=out, **ASK).stderr
    assert data("prompts", out=out, **{**ASK, "count": 10}).exit_code == 0
    assert out.read_bytes().startswith(whole[0].read_bytes())
    assert len(read(out)) == 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_tokens": 25}, "made with --max-tokens 24, not 25"),
        ({"seed": 1}, "made with another --seed"),
        ({"temperature": 0.9}, "made with --temperature 1.0, not 0.9"),
        ({"temperature": 0}, "--temperature 0 writes the same prompt every time"),
        ({"dtype": "bf16", "count": 9}, "another --dtype"),
    ],
    ids=str,
)
def test_a_changed_command_is_refused(whole, data, changed, message):
    before = whole[0].read_bytes()
    result = data("prompts", out=whole[0], **{**ASK, **changed})
    assert (result.exit_code, whole[0].read_bytes()) == (2, before)
    assert message in result.stderr


def test_responses_are_not_taken_for_prompts(data, tmp_path):
    out = tmp_path / "rows.jsonl"
    out.write_text('{"source": "s", "prompt": "p", "response": "r"}\n')
    result = data("prompts", out=out, **ASK)
    assert result.exit_code == 2
    assert f"{out}:1: " in result.stderr


def test_a_target_that_never_ends_a_turn_is_given_up(data, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PATIENCE", 40)
    result = data("prompts", out=tmp_path / "out.jsonl", **{**ASK, "max_tokens": 1})
    assert result.exit_code == 2
    assert "gave up after 40 attempts without a new prompt: 0 of 40 attempts kept" in result.stderr


def test_what_is_kept(tiny):
    record = Record(Settings(count=9), "sha")
    eos = tiny.encode("<|im_end|>", special_tokens=False)

    def judge(text, *, reason=FinishReason.STOP, extra=()):
        tokens = (*tiny.encode(text, special_tokens=False), *extra, *(eos if reason is FinishReason.STOP else ()))
        return record.judge(Decoded(Request("0", (1,), SamplingParams(9)), tokens, reason), tiny)

    assert judge(" Why is that? \n") == "Why is that?"
    assert judge("Why is that?") is None
    assert judge("Why is", reason=FinishReason.LENGTH) is None
    assert judge("  \n") is None
    assert judge("") is None
    assert judge("a<|im_start|>b") is None
    assert judge("w", extra=tiny.encode("ö", special_tokens=False)[:1]) is None
    assert judge("wö") == "wö"
    assert record.fates == {"kept": 2, "duplicate": 1, "truncated": 1, "empty": 2, "garbled": 2}
    assert record.report() == "2 of 8 attempts kept (2 empty, 1 truncated, 2 garbled, 1 duplicate)"


def test_attempts_are_judged_in_their_order():
    ended = [Decoded(Request(str(n), (1,), SamplingParams(1)), (n,), FinishReason.STOP) for n in (7, 5, 8, 6, 10)]
    assert [(attempt, decoded.tokens) for attempt, decoded in in_order(iter(ended), 5)] == [
        (n, (n,)) for n in (5, 6, 7, 8)
    ]
