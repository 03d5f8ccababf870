"""The options of ``redraft train sft`` all reach the run; what is held out, and how a row without ids is encoded."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from redraft.benchmarks.tiny import VOCAB, make_tiny_target
from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.data import Text
from redraft.drafts.training.settings import SftSettings
from redraft.server import train_cli
from redraft.server.cli import app
from redraft.server.text import TextTokenizer
from redraft.server.train import ChatEncode, RunOptions
from redraft.server.train_held_out import development, like

GIVEN: dict[str, tuple[str, Any]] = {
    "layers": ("3", 3),
    "block_size": ("7", 7),
    "taps": ("4,2", (4, 2)),
    "tap_count": ("2", 2),
    "causal": ("", True),
    "vocab": ("77", 77),
    "mask_token_id": ("9", 9),
    "copied": ("5,6,7", (5, 6, 7)),
    "output_scale": ("0.7", 0.7),
    "steps": ("11", 11),
    "batch": ("3", 3),
    "micro_batch": ("2", 2),
    "anchors": ("8", 8),
    "max_length": ("99", 99),
    "optimiser": ("adamw", "adamw"),
    "rate": ("0.125", 0.125),
    "weight_decay": ("0.5", 0.5),
    "clip": ("2.5", 2.5),
    "warmup": ("6", 6),
    "decay_share": ("0.75", 0.75),
    "weights": ("uniform", "uniform"),
    "gamma": ("9.5", 9.5),
    "alpha": ("0.25", 0.25),
    "soft": ("0.0", 0.0),
    "seed": ("42", 42),
}
"""Every setting as an option gives it, none at its default."""


class TestOptions:
    """Every option reaches the run."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        made: list[tuple[Any, ...]] = []
        monkeypatch.setattr("redraft.server.train.train_draft", lambda *args: made.append(args))
        monkeypatch.setattr(
            "redraft.server.engine.target.resolve.resolve_target",
            lambda target, revision, offline: made.append((target, revision, offline)),
        )
        return made

    def run(self, *options: str) -> None:
        result = CliRunner().invoke(app, ["train", "sft", *options])
        assert result.exit_code == 0, result.output

    def test_all_settings_are_options(self, calls) -> None:
        # what a run starts from is given as a folder and kept as its version
        assert set(GIVEN) == {field.name for field in dataclasses.fields(SftSettings)} - {"start"}
        assert not [n for n, (_, value) in GIVEN.items() if value == getattr(SftSettings(), n)]
        options = [part for name, (text, _) in GIVEN.items() for part in (f"--{name.replace('_', '-')}", text) if part]
        self.run("--data", "a", "--data", "b", "--dev", "c", "--out", "o", *options)
        _, (_, data, dev, settings, options_made, device, dtype) = calls
        assert {name: getattr(settings, name) for name in GIVEN} == {name: value for name, (_, value) in GIVEN.items()}
        assert (data, dev, device, dtype) == ([Path("a"), Path("b")], [Path("c")], "auto", "auto")
        assert options_made.out == Path("o")

    def test_what_changes_no_number(self, calls) -> None:
        plain = ["--data", "a", "--out", "o"]
        self.run(*plain, "--measure-every", "7", "--save-every", "9", "--dev-limit", "3", "--no-keep-states")
        self.run(*plain, "--keep-states", "--device", "cpu", "--dtype", "bf16", "--target", "x", "--offline")
        self.run(*plain, "--target", "owner/name", "--revision", "v2")
        assert calls[1][4] == RunOptions(Path("o"), keep_states=False, measure_every=7, save_every=9, dev_limit=3)
        assert calls[3][4].keep_states is True
        assert calls[3][5:] == ("cpu", "bf16")
        assert (calls[2], calls[4]) == (("x", None, True), ("owner/name", "v2", False))

    def test_defaults_are_those_of_the_settings(self, calls) -> None:
        self.run("--data", "a", "--out", "o")
        _, (_, data, dev, settings, options, *_rest) = calls
        assert (data, dev) == ([Path("a")], [])
        assert settings == SftSettings()
        assert options == RunOptions(Path("o"))

    def test_help_lists_every_option(self) -> None:
        text = CliRunner().invoke(app, ["train", "sft", "--help"], env={"COLUMNS": "200"}).output
        for name in inspect.signature(train_cli.sft).parameters.keys() - {"context"}:
            assert re.search(rf"^ +(\*  )?--{name.replace('_', '-')}\b", text, re.MULTILINE), name
        assert "sft" in CliRunner().invoke(app, ["train", "--help"]).output


def test_development_takes_greedy_answers_of_every_source() -> None:
    def text(source: str, temperature: float = 0.0, answer: int = 9) -> Text:
        return Text(tuple(range(3 + answer)), 3, source, temperature)

    texts = [text("a", answer=n) for n in (5, 6, 7)] + [text("b", 0.8), text("b", answer=30), text("b", answer=8)]
    chosen = development(texts, 4, 10)
    assert [(t.source, len(t.tokens) - 3) for t in chosen] == [("a", 5), ("a", 6), ("b", 10), ("b", 8)]
    assert all(t.tokens == tuple(range(len(t.tokens))) and t.prompt == 3 for t in chosen)
    with pytest.raises(DraftError, match="no answer at temperature 0"):
        development([text("b", 0.8)], 40)


def test_known_texts_are_like_the_held_out_ones() -> None:
    def texts(source: str, *answers: int, temperature: float = 0.0) -> list[Text]:
        return [Text(tuple(range(3 + answer)), 3, source, temperature) for answer in answers]

    trained = texts("a", 30, 5, 6) + texts("c", 9) + texts("b", 7, temperature=0.8) + texts("b", 8, 9)
    held_out = texts("b", 10) + texts("a", 4, 9) + texts("d", 4)
    assert [(t.source, len(t.tokens) - 3) for t in like(trained, held_out)] == [("a", 10), ("a", 5), ("b", 8)]
    assert like(texts("c", 9), held_out) == []


def test_rows_without_ids_are_encoded_as_the_server_would(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_folder(make_tiny_target(tmp_path / "tiny", tokenizer=True))
    encode = ChatEncode(tokenizer, VOCAB - 1)
    assert tokenizer.chat_template is not None
    prompt = encode.prompt("Hi.")
    assert prompt == tokenizer.encode("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n", special_tokens=False)
    assert encode.response("Hello", ended=False) == tokenizer.encode("Hello")
    assert encode.response("Hello", ended=True) == (*tokenizer.encode("Hello"), VOCAB - 1)
