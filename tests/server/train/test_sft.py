"""``redraft train sft`` on a tiny target: what it leaves behind, going on, stopping, and its errors."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from redraft.benchmarks.tiny import CONTEXT, VOCAB
from redraft.drafts.checkpoint import read_draft
from redraft.drafts.training.sft import Sft
from redraft.server.engine.target.digest import weights_digest

pytestmark = pytest.mark.usefixtures("one_thread")


def logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "state" / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_draft_that_can_be_served(sft, target: Path, dev: Path, tmp_path: Path) -> None:
    result = sft("--dev", dev, "--causal")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "5 texts with " in result.stderr
    assert "4 held-out greedy answers" in result.stderr
    assert re.search(r"step 4/4 loss \d+\.\d+, \d+ labels/s, τ \d\.\d{3}\n", result.stderr)
    draft = read_draft(tmp_path / "out" / "draft")
    config = draft.config
    assert (config.layers, config.block_size, config.taps, config.causal) == (1, 4, (0, 1), True)
    assert (config.vocab, config.draft_vocab, config.mask_token_id, config.target_layers) == (VOCAB, 64, 16, 2)
    assert len(config.tree_temperatures) == 3
    assert draft.vocabulary is not None
    assert VOCAB - 1 in draft.vocabulary.tolist(), "the end of a turn can always be drafted"
    card = draft.card
    assert (card["target"], card["target_sha"]) == ("tiny", weights_digest(target))
    assert (card["steps"], card["texts"], card["data"]) == (4, 5, ["data.jsonl"])
    assert card["development_tau"] >= 1
    assert card["trained_tau"] is None, "nothing like the held-out answers was trained on"
    assert card["settings"]["block_size"] == 4
    assert logged(tmp_path / "out") == [1, 2, 3, 4]


def test_short_of_texts_is_said(sft, target: Path, tmp_path: Path) -> None:
    """One text by heart, another without anything in common with it."""
    files = {}
    for name, first in (("one", 30), ("other", 200)):
        row = {"prompt_ids": [first] * 3, "response_ids": [first, first + 1, first + 2] * 8, "temperature": 0.0}
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text(json.dumps(row) + "\n")
    sure = ("--soft", "0", "--rate", "0.02", "--warmup", "0", "--decay-share", "0", "--batch", "1")
    result = sft("--data", files["one"], "--dev", files["other"], *sure, "--measure-every", "100", steps=100)
    assert result.exit_code == 0, result.output
    card = read_draft(tmp_path / "out" / "draft").card
    told = f"τ {card['development_tau']:.3f} on held-out answers, {card['trained_tau']:.3f} on as many"
    assert f"{told} that were trained on; it knows these by heart: more texts would help" in result.stderr
    assert card["trained_tau"] > 1.1 * card["development_tau"]


def test_the_same_command_goes_on_and_then_has_nothing_to_do(sft, tmp_path: Path) -> None:
    assert sft(steps=2).exit_code == 0
    first = read_draft(tmp_path / "out" / "draft").version
    longer = sft(steps=5)
    assert longer.exit_code == 0
    assert "going on from step 2" in longer.stderr
    assert logged(tmp_path / "out") == [1, 2, 3, 4, 5]
    second = read_draft(tmp_path / "out" / "draft")
    assert second.version != first
    assert second.card["development_tau"] is None, "nothing was held out"
    again = sft(steps=5)
    assert again.exit_code == 0
    assert read_draft(tmp_path / "out" / "draft").version == second.version
    assert logged(tmp_path / "out") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_step_with_everything_saved(sft, tmp_path, monkeypatch, number: int) -> None:
    whole, handlers = Sft.step, [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def step(run: Sft) -> None:
        if run.progress.step == 2:
            signal.raise_signal(number)
        whole(run)

    with monkeypatch.context() as patched:
        patched.setattr(Sft, "step", step)
        stopped = sft(steps=5)
    assert stopped.exit_code == 0, stopped.output
    assert "stopped at step 3, saved; the same command goes on from there" in stopped.stderr
    assert [path.name for path in (tmp_path / "out" / "state").glob("step-*")] == ["step-00000003"]
    assert not (tmp_path / "out" / "draft").exists()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    cut = sft(steps=5)
    assert "going on from step 3" in cut.stderr
    sft("--out", tmp_path / "whole", steps=5)
    drafts = [read_draft(tmp_path / name / "draft") for name in ("out", "whole")]
    assert drafts[0].version == drafts[1].version, "stopping changed the numbers"


def test_ctrl_c_as_a_user_presses_it(sizes, target: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from redraft.server.cli import main; main()", "train", "sft"]
    given = ["--target", target, "--data", data, "--out", tmp_path / "out", "--steps", "1000000", *sizes]
    environment = os.environ | {"REDRAFT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *map(str, given)], stderr=subprocess.PIPE, text=True, env=environment)
    log, deadline = tmp_path / "out" / "state" / "log.jsonl", time.monotonic() + 240
    try:
        while not log.is_file() or log.read_text().count("\n") < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    found = re.search(r"stopped at step (\d+), saved", errors)
    assert process.returncode == 0, errors
    assert found, errors
    assert (tmp_path / "out" / "state" / f"step-{int(found[1]):08}").is_dir()
    assert logged(tmp_path / "out") == list(range(1, int(found[1]) + 1))


def test_prompts_of_development_must_not_be_trained_on(sft, row, write, one_line, tmp_path: Path) -> None:
    overlapping = write(tmp_path / "both.jsonl", row(1), row(200))
    error = one_line(sft("--dev", overlapping))
    assert "1 development prompts are also in the training data" in error
    assert not (tmp_path / "out").exists()


LONG = CONTEXT + 20
MISTAKES: dict[str, tuple[list[str], str]] = {
    "no-target": (["--target", "/no/such/folder"], "there is no folder /no/such/folder"),
    "no-data": (["--data", "{tmp}/gone.jsonl"], "gone.jsonl: cannot be read"),
    "not-json": (["--data", "{tmp}/broken.jsonl"], "broken.jsonl, line 2: not JSON"),
    "id-out-of-range": (["--data", "{tmp}/ids.jsonl"], "ids.jsonl, line 1: a token id is not in the target's voc"),
    "nothing-greedy": (["--dev", "{tmp}/sampled.jsonl"], "no answer at temperature 0"),
    "dev-gone": (["--dev", "{tmp}/gone.jsonl"], "gone.jsonl: cannot be read"),
    "taps": (["--taps", "0,2"], "taps (0, 2) are not different layers of a target of 2"),
    "taps-twice": (["--taps", "1,1"], "taps (1, 1) are not different layers"),
    "too-shallow": (["--taps", "", "--tap-count", "3"], "a target of 2 layers is too shallow for 3 taps"),
    "copied": (["--copied", "0,1"], "1 layers cannot be copied from the target's [0, 1]"),
    "mask": (["--mask-token-id", str(VOCAB)], f"mask token {VOCAB} is not in the target's vocabulary of {VOCAB}"),
    "rate": (["--rate", "0"], "rate, gamma and clip must be above 0"),
    "too-long": (
        ["--data", "{tmp}/long.jsonl", "--max-length", "4000"],
        f"a text has {LONG + 3} tokens and the target reads at most {CONTEXT}",
    ),
    "out-is-a-file": (["--out", "{tmp}/data.jsonl"], "data.jsonl/"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_line(sft, row, write, one_line, tmp_path: Path, kind: str) -> None:
    write(tmp_path / "broken.jsonl", row(1), '{"prompt": \n')
    write(tmp_path / "ids.jsonl", {"prompt_ids": [1], "response_ids": [2, VOCAB]})
    write(tmp_path / "sampled.jsonl", row(300, temperature=0.8))
    write(tmp_path / "long.jsonl", row(1, LONG))
    options, message = MISTAKES[kind]
    assert message in one_line(sft(*(option.replace("{tmp}", str(tmp_path)) for option in options)))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--taps", "1,x"], "--taps"),
        (["--copied", "last"], "--copied"),
        (["--rate", "nan"], "--rate"),
        (["--output-scale", "inf"], "--output-scale"),
        (["--soft", "2"], "--soft"),
        (["--block-size", "1"], "--block-size"),
        (["--optimiser", "sgd"], "--optimiser"),
    ],
)
def test_values_no_option_takes(sft, options: list[str], named: str) -> None:
    result = sft(*options)
    assert result.exit_code == 2
    assert named in result.stderr
    assert "Traceback" not in result.output


def test_another_run_in_the_same_folder_is_refused(sft, row, write, one_line, tmp_path: Path) -> None:
    assert sft(steps=1).exit_code == 0
    error = one_line(sft("--rate", "0.001", "--soft", "0.1", steps=1))
    assert "other rate, soft;" in error.replace("soft, rate", "rate, soft")
    other = write(tmp_path / "other.jsonl", row(7))
    assert "other texts;" in one_line(sft("--data", other, steps=1)).replace("other texts, ", "other texts;")


def test_a_full_disk_at_the_end_loses_nothing(sft, one_line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("redraft.server.train.write_draft", full)
        error = one_line(sft(steps=2))
    assert "the draft could not be written" in error
    assert "run the same command again" in error
    assert sft(steps=2).exit_code == 0
    assert read_draft(tmp_path / "out" / "draft").card["steps"] == 2
    assert logged(tmp_path / "out") == [1, 2]
