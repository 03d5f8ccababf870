"""``bench acceptance``: one engine, several ways to draft, the same tokens by each."""

import json
from pathlib import Path

import pytest
import torch

from redraft.benchmarks.acceptance import acceptance
from redraft.benchmarks.prompts import PromptFile
from redraft.benchmarks.tiny import CONTEXT, HIDDEN, INTERMEDIATE, LAYERS, VOCAB, make_tiny_target
from redraft.drafts.checkpoint import write_draft
from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.training.module import DFlashModule
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.types import RedraftError, SamplingParams

CONFIG = DFlashConfig(
    layers=1,
    hidden=HIDDEN,
    intermediate=INTERMEDIATE,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=VOCAB,
    norm_eps=1e-6,
    rope_theta=10000.0,
    block_size=4,
    mask_token_id=0,
    taps=(0, 1),
    target_layers=LAYERS,
    max_positions=CONTEXT,
)


def config_with_a_random_draft(folder: Path) -> EngineConfig:
    torch.manual_seed(0)
    write_draft(folder / "draft", CONFIG, DFlashModule(CONFIG).state_dict(), None, {"name": "random"})
    target = make_tiny_target(folder / "target", tokenizer=True)
    return EngineConfig(str(target), "tiny", "0", draft=str(folder / "draft"), dtype="fp32", device="cpu", max_nodes=3)


def test_every_way_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [PromptFile("set", (("ab ab ab",), ("hello there",)))]
    acceptance(config_with_a_random_draft(tmp_path), files, SamplingParams(12, temperature=0.0), None, ["redraft"])
    printed = capsys.readouterr().out.splitlines()
    report = json.loads(printed[-1])
    assert [row["draft"] for row in report["files"]] == ["n-gram", "chain", "tree", "tree + n-gram"]
    for row in report["files"]:
        assert row["tokens"] == report["files"][0]["tokens"]
        assert row["tau"] == row["tokens"] / row["rounds"]
        assert sum(n * count for n, count in enumerate(row["histogram"], start=1)) == row["tokens"]
    assert len(printed) == 5


def test_differing_output_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from redraft.benchmarks import acceptance as module

    real, calls = module.decode, []

    def odd(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        calls.append(found)
        if len(calls) == 2:
            found[0].tokens[0] ^= 1
        return found

    monkeypatch.setattr(module, "decode", odd)
    config, files = config_with_a_random_draft(tmp_path), [PromptFile("set", (("ab",),))]
    with pytest.raises(RedraftError, match="different tokens"):
        acceptance(config, files, SamplingParams(4, temperature=0.0), None, [])
