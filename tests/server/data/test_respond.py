"""`redraft data respond`: exact ids, the same rows however often it was stopped, nothing mixed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from redraft.benchmarks.tiny import make_tiny_target
from redraft.server.data.row_file import RowFile
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import Request, SamplingParams
from redraft.server.text import TextTokenizer

ASK = {"max_tokens": 24, "temperature": 1.0, "samples": 2}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = ["Hello", "What is 7 times 6?", "zzz", "Wörld", "tell me of the sea", "again", "again"]
    path.write_text("".join(json.dumps({"source": "test", "turns": [text, "second"]}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def whole(data, prompts, tmp_path_factory):
    """What a run that nothing interrupts writes."""
    out = tmp_path_factory.mktemp("whole") / "responses.jsonl"
    result = data("respond", prompts, out=out, **ASK)
    assert result.exit_code == 0, result.stderr
    return out


def test_rows_hold_the_ids_that_were_fed_and_came(whole, talker):
    rows = read(whole)
    assert len(rows) == 7 * 2
    tokenizer = TextTokenizer.from_folder(talker)
    engine = build_engine(EngineConfig(str(talker), "talker", "", draft="none", device="cpu", dtype="fp32"))
    for row in rows:
        text = tokenizer.chat_template.render([{"role": "user", "content": row["prompt"]}])
        assert tuple(row["prompt_ids"]) == tokenizer.encode(text, special_tokens=False)
        params = SamplingParams(row["max_tokens"], row["temperature"], seed=row["seed"])
        engine.submit(Request("alone", tuple(row["prompt_ids"]), params))
        tokens, reason = [], None
        while engine.busy:
            for output in engine.step().outputs:
                tokens += output.tokens
                reason = output.finish_reason
        assert (row["response_ids"], row["finish_reason"]) == (tokens, reason)
        shown = tokens[:-1] if reason == "stop" else tokens
        assert (row["response_ids"][-1] in engine.info.eos_token_ids) == (reason == "stop")
        assert row["response"] == tokenizer.decode(shown)
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    # ids made from the text again would be others
    assert any(list(tokenizer.encode(row["response"])) != row["response_ids"][:-1] for row in rows)


def test_every_row_has_its_own_seed(whole):
    rows = read(whole)
    assert len({row["seed"] for row in rows}) == len(rows)
    assert {(row["prompt"], row["sample"]) for row in rows if row["prompt"] == "again"} == {
        ("again", sample) for sample in range(4)
    }
    assert max(row["seed"] for row in rows) < 2**53


def test_neither_draft_nor_batch_changes_a_row(whole, data, prompts, tmp_path):
    out = tmp_path / "plain.jsonl"
    assert data("respond", prompts, out=out, draft="none", max_num_seqs=3, **ASK).exit_code == 0
    assert sorted(read(out), key=str) == sorted(read(whole), key=str)


def test_greedy_needs_one_answer_for_all_samples(data, prompts, tmp_path):
    out = tmp_path / "greedy.jsonl"
    words = (prompts, "--temperature", 0)
    result = data("respond", *words, out=out, max_tokens=8, samples=3, temperature=0.5, limit=2)
    assert result.exit_code == 0, result.stderr
    assert sorted((row["prompt"], row["temperature"], row["sample"]) for row in read(out)) == sorted(
        (prompt, temperature, sample)
        for prompt in ("Hello", "What is 7 times 6?")
        for temperature, sample in ((0.0, 0), (0.5, 0), (0.5, 1), (0.5, 2))
    )


@pytest.mark.parametrize("rows", [0, 1, 5, 13])
def test_an_interrupted_run_goes_on_to_the_same_rows(whole, data, prompts, tmp_path, monkeypatch, rows):
    out = tmp_path / "responses.jsonl"
    append = RowFile.append

    def interrupted(self, row):
        if len(read(out)) == rows:
            raise KeyboardInterrupt
        append(self, row)

    monkeypatch.setattr(RowFile, "append", interrupted)
    result = data("respond", prompts, out=out, **ASK)
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr
    kept = out.read_bytes()
    assert len(read(out)) == rows
    monkeypatch.setattr(RowFile, "append", append)
    assert data("respond", prompts, out=out, **ASK).exit_code == 0
    assert out.read_bytes().startswith(kept)
    assert sorted(read(out), key=str) == sorted(read(whole), key=str)
    complete = out.read_bytes()
    again = data("respond", prompts, out=out, **ASK)
    assert (again.exit_code, out.read_bytes()) == (0, complete)
    assert f"{out} is complete: 14 rows" in again.stderr


def test_a_torn_last_line_is_made_again(whole, data, prompts, tmp_path):
    out = tmp_path / "responses.jsonl"
    out.write_bytes(whole.read_bytes()[:-20])
    result = data("respond", prompts, out=out, **ASK)
    assert result.exit_code == 0
    assert "torn" in result.stderr
    assert sorted(read(out), key=str) == sorted(read(whole), key=str)


def test_ctrl_c_leaves_whole_lines(talker, tmp_path):
    path, out = tmp_path / "many.jsonl", tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps({"turns": [f"prompt {n}"]}) + "\n" for n in range(5000)))
    code = (
        # a shell may start tests with the signal ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from redraft.server.data.cli import app; app()"
    )
    words = ["respond", path, "--out", out, "--target", talker, "--max-tokens", 200, "--temperature", 1.0]
    command = [sys.executable, "-c", code, *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (out.is_file() and out.read_bytes().count(b"\n") > 2) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1] == f"Interrupted. What {out} holds is whole; run the same command again to go on."
    assert out.read_bytes().endswith(b"}\n")
    assert 2 < len(read(out)) < 5000


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_tokens": 25}, "made with --max-tokens 24, not 25"),
        ({"seed": 1}, "made with another --seed"),
        ({"temperature": 0.9}, "at temperature 1.0 of a prompt, for which this command does not ask"),
        ({"samples": 1}, "for which this command does not ask"),
        ({"limit": 2}, "for which this command does not ask"),
    ],
    ids=str,
)
def test_a_changed_command_is_refused(whole, data, prompts, changed, message):
    before = whole.read_bytes()
    result = data("respond", prompts, out=whole, **{**ASK, **changed})
    assert (result.exit_code, whole.read_bytes()) == (2, before)
    assert result.stderr.splitlines()[-1].startswith(f"redraft: {whole}:")
    assert message in result.stderr
    assert "give another --out" in result.stderr


def test_another_target_is_refused(whole, data, prompts, tmp_path):
    other = make_tiny_target(tmp_path / "other", seed=1, tokenizer=True)
    before = whole.read_bytes()
    result = data("respond", prompts, out=whole, target=other, **ASK)
    assert (result.exit_code, whole.read_bytes()) == (2, before)
    assert "the answer of another target" in result.stderr


def test_another_class_of_arithmetic_is_refused(whole, data, prompts):
    before = whole.read_bytes()
    result = data("respond", prompts, out=whole, dtype="bf16", **{**ASK, "samples": 3})
    assert (result.exit_code, whole.read_bytes()) == (2, before)
    assert "another --dtype" in result.stderr


def test_more_may_be_asked_for(whole, data, prompts, tmp_path):
    out = tmp_path / "responses.jsonl"
    out.write_bytes(whole.read_bytes())
    result = data("respond", prompts, out=out, **{**ASK, "samples": 3})
    assert result.exit_code == 0, result.stderr
    assert out.read_bytes().startswith(whole.read_bytes())
    assert len(read(out)) == 7 * 3


def test_long_prompts_are_skipped_and_named(data, tmp_path):
    path, out = tmp_path / "prompts.jsonl", tmp_path / "responses.jsonl"
    texts = ["short", "x" * 70, "also short", "y" * 80]
    path.write_text("".join(json.dumps({"turns": [text]}) + "\n" for text in texts))
    result = data("respond", path, out=out, max_tokens=24, max_model_len=100)
    assert result.exit_code == 0, result.stderr
    assert {(row["source"], row["prompt"]) for row in read(out)} == {("prompts", "short"), ("prompts", "also short")}
    assert (
        f"warning: 2 of the prompts skipped, longer than the 76 tokens that --max-tokens 24 leaves: {path}:2, {path}:4"
        in (result.stderr.splitlines())
    )
    assert "2 rows added, 2 of 4 in all" in result.stderr
    crowded = data("respond", path, out=out, max_tokens=100, max_model_len=100)
    assert crowded.exit_code == 2


def test_a_line_that_is_no_prompt_is_named_before_any_work(data, tmp_path):
    good, bad, out = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "responses.jsonl"
    good.write_text('{"turns": ["fine"]}\n')
    bad.write_text('{"turns": ["fine"]}\n\n{"turns": ["cut o')
    result = data("respond", good, bad, out=out, target="/no/such/target")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"redraft: {bad}:3: ")
    assert not out.exists()


def test_a_target_without_a_template_cannot_be_asked(data, prompts, tmp_path, talker):
    mute = shutil.copytree(talker, tmp_path / "mute")
    (mute / "tokenizer_config.json").unlink()
    result = data("respond", prompts, out=tmp_path / "out.jsonl", target=mute)
    assert result.exit_code == 2
    assert "mute has no chat template" in result.stderr


@pytest.mark.parametrize("words", [["--temperature", 0, "--temperature", 0.0], ["--temperature", "nan"]], ids=str)
def test_odd_temperatures_are_refused(data, prompts, tmp_path, words):
    result = data("respond", prompts, *words, out=tmp_path / "out.jsonl")
    assert result.exit_code == 2
    assert "--temperature" in result.stderr
