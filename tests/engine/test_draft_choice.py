"""Which draft serves, and what is said of one that cannot: always one line that names it, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from redraft.drafts.dflash import DFlashDrafter
from redraft.drafts.eagle3 import Eagle3Drafter
from redraft.drafts.merged import MergedDrafter
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.draft_choice import DraftChoice, choose_draft
from redraft.server.engine.load import build_engine
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.types import RedraftError, Request, SamplingParams

CPU = torch.device("cpu")
SHA = "5ha0f7he7arge7"


@pytest.fixture
def config(tiny_target: Callable[[str], Path]) -> EngineConfig:
    return EngineConfig(str(tiny_target("llama")), "tiny", SHA, dtype="fp32", device="cpu", max_num_seqs=2)


@pytest.fixture
def draft(config: EngineConfig, random_draft: Callable[..., Path], tmp_path: Path) -> Path:
    return random_draft(Path(config.target), into=tmp_path / "mine", card={"target_sha": SHA})


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of shipped drafts, empty."""
    monkeypatch.setattr("redraft.drafts.shipped.resources.files", lambda package: tmp_path / "package")
    folder = tmp_path / "package" / "checkpoints" / "tiny"
    folder.mkdir(parents=True)
    return folder


def choose(config: EngineConfig, **changes: Any) -> DraftChoice:
    return choose_draft(replace(config, **changes), read_spec(Path(config.target)), CPU)


def refusal(config: EngineConfig, folder: Path) -> str:
    """What is said of a draft that cannot serve."""
    with pytest.raises(RedraftError) as refused:
        choose(config, draft=str(folder))
    message = str(refused.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_a_folder_serves_with_ngram_lookup_beside_it_or_alone(config: EngineConfig, draft: Path) -> None:
    both = choose(config, draft=str(draft))
    assert both.why == "draft: mine, as asked, with n-gram lookup in the same tree"
    assert (both.nodes, both.candidates) == (11, 22)
    alone = choose(config, draft=str(draft), draft_ngram=False, draft_branch=1, max_nodes=5)
    assert alone.why == "draft: mine, as asked"
    assert (alone.nodes, alone.candidates) == (5, 5)
    embedding = torch.zeros(512, 64)
    merged, block = (choice.make(embedding, lambda: embedding, 64) for choice in (both, alone))
    assert isinstance(merged, MergedDrafter)
    assert merged.max_nodes == 22
    assert isinstance(block, DFlashDrafter)
    assert (block.max_nodes, block.branch) == (5, 1)
    assert block.context == merged.context == both.context


def test_an_eagle3_draft_serves_by_what_its_config_says(
    config: EngineConfig, random_draft: Callable[..., Path], tmp_path: Path
) -> None:
    folder = random_draft(Path(config.target), kind="eagle3", into=tmp_path / "e", kept=range(40), steps=3)
    both = choose(config, draft=str(folder))
    assert both.why == "draft: e, as asked, with n-gram lookup in the same tree"
    assert (both.nodes, both.candidates, both.context.reach, both.context.layers) == (11, 22, 1 + 2 * 4, 2)
    alone = choose(config, draft=str(folder), draft_ngram=False, draft_branch=1, max_nodes=5)
    chain = alone.make(torch.zeros(512, 64), lambda: pytest.fail("its head is its own"), 64)
    assert isinstance(chain, Eagle3Drafter)
    assert (chain.max_nodes, chain.width, chain.steps, alone.context.reach) == (5, 1, 3, 3)
    engine = build_engine(replace(config, draft=str(folder), self_check=False))
    assert engine.info.draft.startswith("e+ngram-")
    assert engine.drafter.context == both.context
    assert engine.pacer.costs is not None, "what it costs was measured"


def test_an_eagle3_draft_for_another_target_is_refused(
    config: EngineConfig, random_draft: Callable[..., Path], tmp_path: Path
) -> None:
    target = Path(config.target)
    deep = random_draft(target, kind="eagle3", into=tmp_path / "deep", target_layers=3)
    assert refusal(config, deep).endswith("is a draft for another target: target layers 3 (this target: 2)")
    wide = random_draft(target, kind="eagle3", into=tmp_path / "wide", hidden=32)
    assert "hidden size 32 (this target: 64)" in refusal(config, wide)
    bare = random_draft(target, kind="eagle3", into=tmp_path / "bare", taps=(), target_layers=0)
    assert "a target of 2 layers is too shallow for the default taps of EAGLE-3" in refusal(config, bare)


def test_a_card_may_name_the_draft(config: EngineConfig, random_draft: Callable[..., Path], tmp_path: Path) -> None:
    folder = random_draft(Path(config.target), into=tmp_path / "x", card={"name": "quick one"})
    assert choose(config, draft=str(folder)).why.startswith("draft: quick one, as asked")


def test_nothing_is_drafted_if_so_asked(config: EngineConfig, draft: Path) -> None:
    for changes in ({"draft": "none"}, {"draft": str(draft), "max_nodes": 0}):
        choice = choose(config, **changes)
        assert (choice.why, choice.nodes, choice.candidates) == ("draft: none, plain decoding as asked", 0, 0)
        assert choice.context.taps == ()
    engine = build_engine(replace(config, draft=str(draft), max_nodes=0, self_check=False))
    assert (engine.info.draft, engine.info.max_nodes) == ("none", 0)
    assert engine.state.draft_kv.numel() == 0


@pytest.mark.parametrize("nodes", [-1, 64, 1000])
def test_a_number_of_nodes_that_cannot_be_is_refused(config: EngineConfig, nodes: int) -> None:
    with pytest.raises(RedraftError, match=rf"--max-nodes and --speculation must lie in 0 \.\.\. 63, not {nodes}"):
        choose(config, draft="ngram", max_nodes=nodes)


def test_two_trees_in_one_have_room_for_half_as_many_nodes_each(config: EngineConfig, draft: Path) -> None:
    with pytest.raises(RedraftError, match=r"0 \.\.\. 31 with n-gram lookup in the tree, not 32"):
        choose(config, draft=str(draft), max_nodes=32)
    assert choose(config, draft=str(draft), max_nodes=32, draft_ngram=False).candidates == 32


@pytest.mark.usefixtures("shipped")
def test_without_a_trained_draft_ngram_serves_and_says_how_to_train_one(config: EngineConfig) -> None:
    assert choose(config, draft="ngram").why == "draft: ngram, as asked"
    choice = choose(config)
    assert choice.why.startswith("draft: ngram, because no trained draft for this target's weights")
    assert "'redraft train sft --help'" in choice.why
    engine = build_engine(replace(config, self_check=False))
    assert engine.info.draft == "ngram-1"
    assert choice.why in engine.info.notes


def test_the_shipped_draft_is_the_one_whose_card_names_these_weights(
    config: EngineConfig, shipped: Path, random_draft: Callable[..., Path]
) -> None:
    target = Path(config.target)
    (shipped / "a-cardless").mkdir()
    random_draft(target, into=shipped / "b-other", card={"target_sha": "other"})
    random_draft(target, into=shipped / "c-more", card={"target_sha": SHA})
    random_draft(target, into=shipped / "d-ours", card={"target_sha": SHA, "default": True}, block_size=4)
    choice = choose(config)
    assert choice.why.startswith("draft: d-ours, the shipped draft for these weights")
    assert choice.context.reach == 4
    # the commands look the default up before there is an engine and say so
    named = choose(config, draft=str(shipped / "d-ours"), draft_why="the shipped draft for these weights")
    assert named.why == choice.why
    assert choose(config, target_sha="unknown").why.startswith("draft: ngram, because")


def test_a_damaged_shipped_card_is_one_clear_error(config: EngineConfig, shipped: Path) -> None:
    (shipped / "a").mkdir()
    (shipped / "a" / "card.json").write_text("[1]")
    with pytest.raises(RedraftError, match=r"card\.json: not a JSON object"):
        choose(config)


def test_a_draft_of_another_target_is_refused_with_the_numbers(
    config: EngineConfig, random_draft: Callable[..., Path], tmp_path: Path
) -> None:
    target = Path(config.target)
    wide = random_draft(target, into=tmp_path / "wide", hidden=32, vocab=300, target_layers=9)
    message = refusal(config, wide)
    for part in (
        "hidden size 32 (this target: 64)",
        "vocabulary 300 (this target: 512)",
        "target layers 9 (this target: 2)",
    ):
        assert part in message
    deep = random_draft(target, into=tmp_path / "deep", target_layers=3)
    assert refusal(config, deep).endswith("is a draft for another target: target layers 3 (this target: 2)")


def test_a_draft_of_other_weights_serves_with_a_warning(
    config: EngineConfig, random_draft: Callable[..., Path], tmp_path: Path
) -> None:
    folder = random_draft(Path(config.target), into=tmp_path / "old", card={"target_sha": "0ther" * 10})
    engine = build_engine(replace(config, draft=str(folder), self_check=False))
    (note,) = [note for note in engine.info.notes if note.startswith("draft: old")]
    assert "WARNING" in note
    assert "0ther0ther0t" in note
    assert SHA[:12] in note
    assert engine.info.draft.startswith("old+ngram-")
    engine.submit(Request("r", (1, 2, 3), SamplingParams(max_tokens=4, temperature=0)))
    tokens = [token for _ in range(9) for output in engine.step().outputs for token in output.tokens]
    assert len(tokens) == 4


def test_a_block_longer_than_the_tree_has_cells_of_its_own(
    config: EngineConfig, random_draft: Callable[..., Path], tmp_path: Path
) -> None:
    folder = random_draft(Path(config.target), into=tmp_path / "long", block_size=12)
    engine = build_engine(replace(config, draft=str(folder), draft_ngram=False, max_nodes=2, self_check=False))
    assert engine.scheduler.tree_rows - engine.state.forced.shape[1] == 12
    engine.submit(Request("r", tuple(range(125)), SamplingParams(max_tokens=2, temperature=0)))
    assert [len(output.tokens) for _ in range(9) for output in engine.step().outputs] == [1, 1]
    written = engine.state.draft_kv[:, :, 128:].abs().amax((0, 1, 3, 4)) > 0
    assert written[:137].any(), "the block reaches into a second page"
    assert not written[137:].any()


BAD_CONFIGS: dict[str, Any] = {
    "architectures": [["LlamaForCausalLM"], 5, None],
    "block_size": [1, "6", None, True],
    "dflash_config": [[1], "x", None, {"mask_token_id": 3}, {"mask_token_id": 512, "target_layer_ids": [0]}],
    "num_hidden_layers": [0, 3, "2"],
    "num_key_value_heads": [3, None],
    "head_dim": [7, 0, 32],
    "rms_norm_eps": ["small", None],
    "rope_theta": ["x"],
    "rope_scaling": ["x", {"rope_type": "yarn"}],
    "rope_parameters": [[1]],
    "draft_vocab_size": ["many", 513, -1, 40],
    "layer_types": [5, ["sliding_attention"]],
    "hidden_act": ["gelu"],
    "attention_bias": [True],
    "vocab_size": [0],
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_with_a_bad_value_is_refused(name: str, config: EngineConfig, draft: Path) -> None:
    path = draft / "config.json"
    good = json.loads(path.read_text())
    for value in BAD_CONFIGS[name]:
        path.write_text(json.dumps(good | {name: value}))
        refusal(config, draft)
    path.write_text(json.dumps(good))
    choose(config, draft=str(draft))


@pytest.mark.parametrize("value", [None, 5, [1.0], ["a"] * 5, [1, 1, 0, 1, 1]])
def test_bad_temperatures_are_refused(value: Any, config: EngineConfig, draft: Path) -> None:
    path = draft / "config.json"
    raw = json.loads(path.read_text())
    raw["dflash_config"]["tree_temperatures"] = value
    path.write_text(json.dumps(raw))
    refusal(config, draft)


def test_a_folder_that_cannot_be_read_is_refused(config: EngineConfig, draft: Path, tmp_path: Path) -> None:
    assert "a draft is a folder with config.json" in refusal(config, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    refusal(config, tmp_path / "file")
    kept = (draft / "config.json").read_text()
    for text in ("", "{", "[]", "\udcff"):
        (draft / "config.json").write_text(text, errors="surrogateescape")
        assert "config.json" in refusal(config, draft)
    (draft / "config.json").write_text(kept)
    (draft / "card.json").write_text("7")
    assert "card.json: not a JSON object" in refusal(config, draft)


def test_weights_that_cannot_be_used_are_refused(config: EngineConfig, draft: Path) -> None:
    path = draft / "model.safetensors"
    whole = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # no view of a file that changes
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged or not safetensors" in refusal(config, draft)
    path.rename(draft / "pytorch_model.bin")
    assert "pickled weights are not loaded" in refusal(config, draft)

    def saying(**changes: torch.Tensor | None) -> str:
        save_file({n: t for n, t in (tensors | changes).items() if t is not None}, path)
        return refusal(config, draft)

    assert "lacks fc.weight" in saying(**{"fc.weight": None})
    assert "fc.weight is (64, 64), config.json makes it (64, 128)" in saying(**{"fc.weight": torch.zeros(64, 64)})
    assert "norm.weight holds values that are not finite" in saying(**{"norm.weight": torch.full((64,), torch.nan)})
    assert "markov.weight means nothing" in saying(**{"markov.weight": torch.zeros(2)})
